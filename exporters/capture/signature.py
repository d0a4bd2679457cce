"""The decoder graph's inputs and outputs as torch exports them: examples, dynamic sizes, names."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.runtime.artifact.manifest import CacheLayer

PREFIX = "model."  # of the wrapped model's parameters in the exported graph

TOKENS, ROWS, SAMPLES, TABLE, SLOTS, EXACT = 7, 2, 3, 5, 6, 4  # of the example inputs; all distinct, none 0 or 1


def example_inputs(layers: tuple[CacheLayer, ...]) -> tuple[Any, ...]:
    """The arguments of `PackedDecoder.forward`; tables and pools by their names in the decoder graph."""
    heads = max(layer.kv_heads for layer in layers)
    tables = {
        "kv_lens": zeros(torch.int32, len(layers), ROWS, heads),
        "tile_table": zeros(torch.int32, len(layers), ROWS, heads, TABLE),
    }
    pools = {f"kv.{i}.tiles": zeros(torch.int8, TILE_TOKENS, layer.tile_bytes) for i, layer in enumerate(layers)}
    for i, layer in enumerate(layers):
        if layer.exact_bytes:
            shape = (SLOTS, layer.kv_heads, EXACT, layer.exact_bytes // 2)
            pools[f"kv.{i}.exact"] = zeros(torch.float16, *shape)
            tables["slots"] = zeros(torch.int32, ROWS)
            tables["encoded_lens"] = zeros(torch.int32, 2, len(layers), ROWS, heads)
    return (
        zeros(torch.int64, TOKENS),
        zeros(torch.int64, TOKENS),
        zeros(torch.int32, ROWS + 1),
        zeros(torch.int64, SAMPLES),
        tables,
        pools,
    )


def zeros(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device="meta")


def dynamic_shapes(layers: tuple[CacheLayer, ...]) -> tuple[Any, ...]:
    dim = torch.export.Dim
    tokens, rows, slots, exact = dim("T"), dim("B"), dim("S"), dim("F")
    tables: dict[str, Any] = {"kv_lens": {1: rows}, "tile_table": {1: rows, 3: dim("M")}}
    pools: dict[str, Any] = {f"kv.{i}.tiles": {0: dim(f"tiles_{i}")} for i in range(len(layers))}
    for i, layer in enumerate(layers):
        if layer.exact_bytes:
            pools[f"kv.{i}.exact"] = {0: slots, 2: exact}
            tables |= {"slots": {0: rows}, "encoded_lens": {2: rows}}
    return ({0: tokens}, {0: tokens}, {0: dim("B1")}, {0: dim("N")}, tables, pools)


_SIZES = {"input_ids": ("T",), "query_starts": ("B1",), "sample_rows": ("N",), "tile_table": ("L", "B", "H", "M")}


def _name_sizes(graph: ir.Graph) -> None:
    """Give the sizes that torch has numbered their names, wherever they stand."""
    names: dict[str | None, str] = {}
    for value in graph.inputs:
        assert value.shape is not None
        for size, name in zip(value.shape, _SIZES.get(value.name or "", ()), strict=False):
            if isinstance(size, ir.SymbolicDim):
                names[size.value] = name
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None:
            sizes = [d if isinstance(d, int) else ir.SymbolicDim(names.get(d.value, d.value)) for d in value.shape]
            value.shape = ir.Shape(sizes)


def name_signature(model: ir.Model, layers: tuple[CacheLayer, ...], names: list[str]) -> None:
    """Give inputs, outputs and sizes the names of the decoder graph's contract; parameters lose the wrapper's prefix.

    names: of the inputs behind `sample_rows`, in order; the pools' are those with a dot.
    """
    graph = model.graph
    pools = [name for name in names if "." in name]
    for value, name in zip(graph.inputs[4:], names, strict=True):
        value.name = name
    _name_sizes(graph)
    for value, name in zip(graph.outputs[2:], pools, strict=True):
        value.name = f"{name}.out"
    for name, *values in zip(pools, graph.inputs[-len(pools) :], graph.outputs[2:], strict=True):
        layer = int(name.split(".")[1])
        is_exact = name.endswith(".exact")
        exact = ("slots", layers[layer].kv_heads, "exact", layers[layer].exact_bytes // 2)
        for value in values:
            value.shape = ir.Shape(exact if is_exact else (f"tiles_{layer}", layers[layer].tile_bytes))
    graph.outputs[0].name, graph.outputs[1].name = "logits", "greedy_tokens"
    for value in list(graph.initializers.values()):
        assert value.name is not None
        value.name = value.name.removeprefix(PREFIX)
