"""Moves KVarN's rotation of the values into the weights before the attention, and its inverse into those after it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from enginewright.exporters.capture.layer_values import OTHER_BASIS
from enginewright.exporters.weights.graph_weights import add_weight, find_bias, weight_of
from enginewright.exporters.weights.weight import Weight
from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION
from enginewright.plugins.ops.op import DOMAIN

VALUE = [each.name for each in KVARN_ATTENTION.inputs].index("value")


@dataclass(frozen=True)
class _Uses:
    """The nodes around one attention whose weights are to be replaced; `_find` creates it.

    projection: the product that makes the values; its weight is input 1.
    bias: the Add of the projection's bias, and the index of that input; None without a bias.
    output: the product that reads the attention's output; its weight is input 1.
    """

    projection: ir.Node
    bias: tuple[ir.Node, int] | None
    output: ir.Node


class FoldValueRotationPass(ir.passes.InPlacePass):
    """Let weights rotate the values in place of KVarNAttention: W_V H, b_V H and H W_O.

    1. The value is the product with a weight [in, Hkv * D], with or without a bias, reshaped; nothing else reads it.
    2. The output is reshaped and multiplied by a weight [Hq * D, out]; nothing else reads it.
    3. In any other case, also where a method has quantised one of the weights, the op keeps the rotation. That costs a
       transform per head in each step.

    H is orthonormal, so an attention's mix of rotated values, rotated back, is the mix of the values.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, KVARN_ATTENTION.name)]
        changed = [_fold(model.graph, node) for node in nodes if node.attributes.get_int("rotate_values", 1)]
        return ir.passes.PassResult(model, modified=any(changed))


def _fold(graph: ir.Graph, attention: ir.Node) -> bool:
    value = attention.inputs[VALUE]
    uses = _find(attention)
    if uses is None or value is None or value.shape is None or not isinstance(value.shape[2], int):
        return False
    dim = value.shape[2]
    _rotate(graph, uses.projection, 1, dim, axis=1)
    _rotate(graph, uses.output, 1, dim, axis=0)
    if uses.bias is not None:
        _rotate(graph, *uses.bias, dim, axis=0)
    attention.attributes["rotate_values"] = ir.AttrInt64("rotate_values", 0)
    attention.outputs[0].meta[OTHER_BASIS] = "rotated as KVarN stores values"
    return True


def _find(attention: ir.Node) -> _Uses | None:
    """The weights on both sides of the attention; None where there is anything else."""
    before, after = _only_maker(attention.inputs[VALUE], "Reshape"), _only_reader(attention.outputs[0], "Reshape")
    if before is None or after is None:
        return None
    output = _only_reader(after.outputs[0], "MatMul")
    projection, bias = _only_maker(before.inputs[0], "MatMul"), None
    if projection is None:
        add = _only_maker(before.inputs[0], "Add")
        products = [] if add is None else [p for v in add.inputs if (p := _only_maker(v, "MatMul")) is not None]
        if add is None or len(products) != 1:
            return None
        projection = products[0]
        weight = weight_of(projection.inputs[1])
        found = None if weight is None else find_bias(projection, weight.shape[1])
        if found is None:
            return None
        bias = (add, list(add.inputs).index(found[1]))
    if output is None or not all(_may_change(node.inputs[1]) for node in (projection, output)):
        return None
    return _Uses(projection, bias, output)


def _may_change(value: ir.Value | None) -> bool:
    """Whether the value is a weight that may still change."""
    weight = weight_of(value)
    return weight is not None and weight.quantized is None


def _only_maker(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node of type `op_type` that makes `value`; None where it is of another type or `value` has several readers."""
    if value is None or len(list(value.uses())) != 1:
        return None
    node = value.producer()
    return node if node is not None and node.op_type == op_type else None


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The one node that reads `value`; None unless it is of type `op_type` and reads it as its first input."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and uses[0].node.op_type == op_type and uses[0].idx == 0 else None


def _rotate(graph: ir.Graph, node: ir.Node, index: int, dim: int, axis: int) -> None:
    """Replace the weight that is input `index` of `node` by one whose heads of size `dim` along `axis` are rotated."""
    value = node.inputs[index]
    weight = weight_of(value)
    assert value is not None and weight is not None
    node.replace_input_with(index, add_weight(graph, f"{value.name}.rotated", _rotated(weight, dim, axis)))


def _rotated(weight: Weight, dim: int, axis: int) -> Weight:
    def change(x: np.ndarray) -> np.ndarray:
        rows = np.moveaxis(x, axis, -1)
        turned = transform(rows.reshape(*rows.shape[:-1], -1, dim)).reshape(rows.shape)
        return np.ascontiguousarray(np.moveaxis(turned, -1, axis))

    return weight.derive(weight.shape, change)


def transform(heads: np.ndarray) -> np.ndarray:
    """The orthonormal Walsh-Hadamard transform along the last axis, whose size is a power of two; it is its own inverse."""
    size, x = heads.shape[-1], heads
    half = 1
    while half < size:
        pairs = x.reshape(*heads.shape[:-1], -1, 2, half)
        x = np.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], axis=-2)
        half *= 2
    result: np.ndarray = (x.reshape(heads.shape) / np.sqrt(size)).astype(heads.dtype)
    return result
