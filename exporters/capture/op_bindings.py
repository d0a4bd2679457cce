"""Registers our ops with torch and ONNX, from their declarations in `plugins.ops`; nothing here repeats a signature."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import onnxscript
import torch

from enginewright.plugins.ops.op import DOMAIN, Op, Tensor, size_of
from enginewright.plugins.ops.registry import OPS

OPSET = onnxscript.values.Opset(DOMAIN, 1)


def torch_schema(op: Op) -> str:
    """The schema for torch.library: tensors first, then attributes without their defaults."""
    tensors = [f"Tensor{'?' if t.optional else '[]' if t.variadic else ''} {t.name}" for t in op.inputs]
    attributes = [f"{a.type} {a.name}" for a in op.attributes]
    results = ", ".join(["Tensor"] * len(op.outputs))
    return f"({', '.join(tensors + attributes)}) -> " + (results if len(op.outputs) == 1 else f"({results})")


def onnx_schema(op: Op) -> onnx.defs.OpSchema:
    """The ONNX schema; inputs and outputs that may have several types share the type variable `T`."""
    schema, parameter = onnx.defs.OpSchema, onnx.defs.OpSchema.FormalParameter
    option = onnx.defs.OpSchema.FormalParameterOption

    def formal(tensor: Tensor) -> onnx.defs.OpSchema.FormalParameter:
        kind = "T" if len(tensor.types) > 1 else _onnx_type(tensor.types[0])
        many = option.Variadic if tensor.variadic else option.Single
        return parameter(tensor.name, kind, tensor.doc, param_option=option.Optional if tensor.optional else many)

    types = next((t.types for t in op.inputs if len(t.types) > 1), ())
    kinds = {"int": schema.AttrType.INT, "float": schema.AttrType.FLOAT}
    return schema(
        op.name,
        DOMAIN,
        op.version,
        doc=op.doc,
        inputs=[formal(t) for t in op.inputs],
        outputs=[formal(t) for t in op.outputs],
        type_constraints=[("T", [_onnx_type(t) for t in types], "")] if types else [],
        attributes=[
            schema.Attribute(a.name, kinds[a.type], a.doc, required=a.default is None)
            if a.default is None
            else schema.Attribute(a.name, onnx.helper.make_attribute(a.name, a.default), a.doc)
            for a in op.attributes
        ],
    )


def onnx_translation(op: Op) -> Callable[..., Any]:
    """The function that torch's ONNX exporter calls for a node of `op`."""
    symbol = onnxscript.values.Op(OPSET, op.name, onnx_schema(op))
    count = len(op.inputs)

    def translate(*arguments: Any) -> Any:
        attributes = dict(zip((a.name for a in op.attributes), arguments[count:], strict=True))
        if op.inputs[-1].variadic:  # by name: otherwise torch 2.13 takes the inputs before it for parts of it
            attributes[op.inputs[-1].name] = arguments[count - 1]
            return symbol(*arguments[: count - 1], **attributes)
        return symbol(*arguments[:count], **attributes)

    return translate


@functools.cache
def register() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Define every op in torch and ONNX, once in a process; return torch's translation table for them."""
    table: dict[Callable[..., Any], Callable[..., Any]] = {}
    for op in OPS.values():
        name = f"{DOMAIN}::{op.torch_name}"
        torch.library.define(name, torch_schema(op))
        torch.library.register_fake(name, functools.partial(_empty_outputs, op))
        onnx.defs.register_schema(onnx_schema(op))
        table[getattr(getattr(torch.ops, DOMAIN), op.torch_name).default] = onnx_translation(op)
    return table


def _empty_outputs(op: Op, *arguments: Any) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Outputs of the declared shapes without data; sizes come from the inputs and attributes by name."""
    tensors: Sequence[torch.Tensor | None] = arguments[: len(op.inputs)]
    sizes = dict(zip((a.name for a in op.attributes), arguments[len(op.inputs) :], strict=True))
    for declared, tensor in zip(op.inputs, tensors, strict=True):
        if tensor is not None and not declared.variadic:
            sizes.update(zip(declared.shape, tensor.shape, strict=True))
    first = next(t for t in tensors if t is not None)
    outputs = []
    for declared in op.outputs:
        like = first if declared.alias is None else tensors[[t.name for t in op.inputs].index(declared.alias)]
        if like is None:  # an absent output: torch has no optional result
            outputs.append(first.new_empty(0))
            continue
        dtype = like.dtype if len(declared.types) > 1 else getattr(torch, declared.types[0])
        outputs.append(like.new_empty([size_of(name, sizes) for name in declared.shape], dtype=dtype))
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _onnx_type(name: str) -> str:
    return f"tensor({'float' if name == 'float32' else name})"
