"""Exports a torch module as an unoptimised `onnx_ir.Model`, through parts of transformers' exporter.

The patches, FX fixes, translations and IR fixes of `transformers.exporters` are private names of transformers 5.23, so
only this module touches them. Weights may lie on the meta device: nothing here reads a value.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import onnx_ir as ir
import torch
from transformers import masking_utils
from transformers.exporters import exporter_onnx
from transformers.exporters.utils import apply_fx_node_fixes, apply_patches
from transformers.integrations import moe

OPSET_VERSION = 23
"""First opset with RMSNormalization and RotaryEmbedding."""


def export_module(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    dynamic_shapes: tuple[Any, ...],
    translations: dict[Callable[..., Any], Callable[..., Any]],
) -> ir.Model:
    """Return `module`'s graph as torch's ONNX exporter writes it, before any optimisation."""
    with traceable():
        program = torch.export.export(module, arguments, dynamic_shapes=dynamic_shapes, strict=False)
        apply_fx_node_fixes("onnx", program.graph_module)
        table = {**exporter_onnx._ONNX_TRANSLATION_TABLE, **translations}
        exported = torch.onnx.export(
            program,
            dynamo=True,
            custom_translation_table=table,
            opset_version=OPSET_VERSION,
            optimize=False,
            verbose=False,
        )
    assert exported is not None
    exporter_onnx.apply_onnx_ir_fixes(exported)
    return exported.model


@contextmanager
def fewer_collections() -> Iterator[None]:
    """Let Python look for garbage seldom: tracing makes millions of small objects that live until it ends.

    It takes 10 % of the time of an export, and 2 % in here, at 7 MB more memory (SmolLM2-135M).
    """
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def traceable() -> Iterator[None]:
    """Patch torch and transformers so that a model can be traced on the meta device, and silence their warnings."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for name in ("torch.onnx", "torch.export", "torch._subclasses", "onnxscript", "onnx_ir"):
            stack.enter_context(_quiet(logging.getLogger(name)))
        stack.enter_context(apply_patches("onnx"))
        # Experts go through transformers' traceable op; torch's own grouped product refuses float32 on meta.
        stack.enter_context(mock.patch.object(moe, "_can_use_grouped_mm", lambda *_: False))
        stack.enter_context(mock.patch.object(torch, "histc", _count_integers))
        # Sequences are told apart by the attention op, so a mask is that of one sequence.
        stack.enter_context(mock.patch.object(masking_utils, "find_packed_sequence_indices", lambda _: None))
        yield


def _count_integers(values: torch.Tensor, bins: int, min: int, max: int) -> torch.Tensor:
    """Count integers as `torch.histc` does with one bin for each.

    transformers' own patch makes constants, which would be lost on the meta device.
    """
    assert bins == max - min + 1
    return (values.reshape(-1, 1) == torch.arange(min, max + 1, device=values.device)).sum(0)


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
