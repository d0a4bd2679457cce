"""The decoder graph's inputs and outputs: the contract between the exporters, the builders and the runtime.

All rows' new tokens lie one after another, without padding: chunks of prompts and single decoded tokens mix freely in one
step, and attention alone knows which token belongs to which row. A graph of standard ops (`--plugins none`) has a dense
cache and one rectangle of tokens instead.

The sizes of an axis are an int where they are fixed, else one of these names:

    T            tokens of the step, over all rows (dense: of each row)
    B, B1        rows, and rows + 1
    N            tokens whose logits are wanted
    L, H         attention layers; KV heads of the layer that has most of them
    M            tiles of the longest row
    tiles_<l>    tiles in the pool of layer l
    slots        places in the exact buffers; one a row
    exact        exact tiles of a row: the first and the newest

Standard library only: exporters and builders read it as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from enginewright.runtime.artifact.manifest import Cache, CacheLayer

Axis: TypeAlias = int | str
Lives: TypeAlias = Literal["step", "table", "pool"]


@dataclass(frozen=True, kw_only=True)
class Port:
    """One input or output of the graph.

    name: as in the ONNX file; "<l>" stands for the number of a layer.
    dtype: ONNX's name in lower case.
    axes: the size of each axis, as the module's docstring names them.
    lives: "step": written before each step, or read after it; "table": kept by the runtime and changed between steps;
        "pool": the cache, which the graph updates in place.
    doc: what it holds.
    only: the kind of cache or of decoding that has it; empty: every packed graph.
    """

    name: str
    dtype: str
    axes: tuple[Axis, ...]
    lives: Lives
    doc: str
    only: str = ""


INPUTS = (
    Port(
        name="input_ids", dtype="int64", axes=("T",), lives="step", doc="new tokens of all rows, one row after another"
    ),
    Port(name="position_ids", dtype="int64", axes=("T",), lives="step", doc="their positions in their requests"),
    Port(
        name="query_starts",
        dtype="int32",
        axes=("B1",),
        lives="step",
        doc="row b owns the tokens query_starts[b] .. query_starts[b + 1]",
    ),
    Port(name="sample_rows", dtype="int64", axes=("N",), lives="step", doc="the tokens whose logits are wanted"),
    Port(
        name="kv_lens",
        dtype="int32",
        axes=("L", "B", "H"),
        lives="table",
        doc="tokens stored before this step, per layer, row and KV head",
    ),
    Port(
        name="tile_table",
        dtype="int32",
        axes=("L", "B", "H", "M"),
        lives="table",
        doc="tile ids in the order of their tokens; a tile holds 128 tokens of one KV head",
    ),
    Port(
        name="slots",
        dtype="int32",
        axes=("B",),
        lives="table",
        doc="each row's place in the buffers of exact tiles",
        only="kvarn",
    ),
    Port(
        name="encoded_lens",
        dtype="int32",
        axes=(2, "L", "B", "H"),
        lives="table",
        doc="tokens in encoded tiles before this step and after it",
        only="kvarn",
    ),
)
"""Inputs that are not the cache's own; the cache's come after them, layer by layer."""

TILES = Port(
    name="kv.<l>.tiles", dtype="int8", axes=("tiles_<l>", "tile_bytes"), lives="pool", doc="the tile pool of layer l"
)
EXACT = Port(
    name="kv.<l>.exact",
    dtype="float16",
    axes=("slots", "kv_heads", "exact", "exact_halves"),
    lives="pool",
    doc="the tiles of layer l that are not encoded, as halves",
    only="kvarn",
)
OUTPUTS = (
    Port(
        name="logits", dtype="float32", axes=("N", "vocab"), lives="step", doc="of the tokens that `sample_rows` names"
    ),
    Port(
        name="greedy_tokens",
        dtype="int64",
        axes=("N",),
        lives="step",
        doc="index of the largest logit, the lowest one among equals; -1 where the logits are not finite",
    ),
    Port(
        name="clp_tokens",
        dtype="int64",
        axes=("N", "k"),
        lives="step",
        doc="the greedy token, then the heads' guesses, then -1",
        only="multi_token",
    ),
    Port(
        name="clp_counts",
        dtype="int64",
        axes=("N",),
        lives="step",
        doc="how many of these tokens are emitted, 1 .. k",
        only="multi_token",
    ),
)
"""Outputs that are not the cache's; an updated pool is called as the input with `.out` after it."""

DENSE_INPUTS = (
    Port(name="input_ids", dtype="int64", axes=("B", "T"), lives="step", doc="new tokens of each row"),
    Port(name="position_ids", dtype="int64", axes=("B", "T"), lives="step", doc="their positions in their requests"),
    Port(name="past_lens", dtype="int64", axes=("B",), lives="step", doc="tokens stored before this step, per row"),
    Port(name="sample_rows", dtype="int64", axes=("N",), lives="step", doc="the tokens whose logits are wanted"),
)
"""The inputs of a graph of standard ops; the cache's come after them."""
DENSE_CACHE = Port(
    name="kv.<l>.<side>",
    dtype="the graph's",
    axes=("B", "kv_heads", "tile_tokens", "dim"),
    lives="pool",
    doc="the keys (side `key`) or values (side `value`) of layer l",
)

PER_STEP = tuple(port.name for port in INPUTS if port.lives == "step")
"""The inputs of a packed graph that each step writes, in order."""


def cache_inputs(cache: Cache) -> tuple[Port, ...]:
    """The packed graph's pools: the tiles of every layer, then the exact tiles of those that encode."""
    tiles = [_of_layer(TILES, index, layer) for index, layer in enumerate(cache.layers)]
    exact = [_of_layer(EXACT, index, layer) for index, layer in enumerate(cache.layers) if layer.exact_bytes]
    return (*tiles, *exact)


def packed_inputs(cache: Cache) -> tuple[Port, ...]:
    """Every input that a packed graph with this cache may have."""
    return (*INPUTS, *cache_inputs(cache))


def dense_inputs(cache: Cache) -> tuple[Port, ...]:
    """Every input of a graph of standard ops with this cache."""
    pools = []
    for index, layer in enumerate(cache.layers):
        for side, dim in (("key", layer.key_dim), ("value", layer.value_dim)):
            axes = ("B", layer.kv_heads, cache.tile_tokens, dim)
            pools.append(replace(DENSE_CACHE, name=f"kv.{index}.{side}", axes=axes))
    return (*DENSE_INPUTS, *pools)


def _of_layer(port: Port, index: int, layer: CacheLayer) -> Port:
    """The port of one layer, with the sizes that are fixed for it."""
    fixed: dict[Axis, Axis] = {
        "tiles_<l>": f"tiles_{index}",
        "tile_bytes": layer.tile_bytes,
        "kv_heads": layer.kv_heads,
        "exact_halves": layer.exact_bytes // 2,
    }
    return replace(
        port, name=port.name.replace("<l>", str(index)), axes=tuple(fixed.get(axis, axis) for axis in port.axes)
    )
