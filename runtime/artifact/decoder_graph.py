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
    slots        places in the buffers of exact tiles and of queries; one a row
    exact        exact tiles of a row: the first and the newest

Standard library only: exporters and builders read it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from enginewright.runtime.artifact.manifest import Cache, CacheLayer, Condition, Manifest, TensorSpec
from enginewright.runtime.errors import ArtifactError

Axis: TypeAlias = int | str
Lives: TypeAlias = Literal["step", "table", "pool", "condition"]
SPARE = 1
"""Tiles of each pool, and rows of exact tiles, that steps need in addition where they are filled up to a fixed size."""
CONDITION = "cond."
"""The beginning of the names of all ports of conditions."""
POOL = "kv."
"""The beginning of the names of all pools."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """One input or output of the graph.

    name: as in the ONNX file; "<l>" stands for the number of a layer.
    dtype: ONNX's name in lower case.
    axes: the size of each axis, as the module's docstring names them.
    lives: "step": written before each step, or read after it; "table": kept by the runtime and changed between steps;
        "pool": the cache, which the graph updates in place; "condition": values that requests choose from, which change
        seldom.
    doc: what it holds.
    padding: what the port gets for each token that fills up a step; "ascending": 0, 1, 2, ...
    optional: whether graphs have it only for a cache that encodes tiles (KVarN), or has a policy that needs it.
    """

    name: str
    dtype: str
    axes: tuple[Axis, ...]
    lives: Lives
    doc: str
    padding: int | Literal["ascending"] = 0
    optional: bool = False

    def shape(self, sizes: Mapping[Axis, int]) -> tuple[int, ...]:
        """Return the port's shape, given the sizes of the axes by their names."""
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in self.axes)


INPUT_IDS = Port(
    name="input_ids", dtype="int64", axes=("T",), lives="step", doc="new tokens of all rows, one row after another"
)
POSITION_IDS = Port(
    name="position_ids",
    dtype="int64",
    axes=("T",),
    lives="step",
    doc="their positions in their requests",
    padding="ascending",
)
QUERY_STARTS = Port(
    name="query_starts",
    dtype="int32",
    axes=("B1",),
    lives="step",
    doc="row b owns the tokens query_starts[b] .. query_starts[b + 1]",
)
SAMPLE_ROWS = Port(
    name="sample_rows", dtype="int64", axes=("N",), lives="step", doc="the tokens whose logits are wanted"
)
KV_LENS = Port(
    name="kv_lens",
    dtype="int32",
    axes=("L", "B", "H"),
    lives="table",
    doc="tokens stored before this step, per layer, row and KV head",
)
TILE_TABLE = Port(
    name="tile_table",
    dtype="int32",
    axes=("L", "B", "H", "M"),
    lives="table",
    doc="tile ids in the order of their tokens; a tile holds 128 tokens of one KV head",
)
SLOTS = Port(
    name="slots",
    dtype="int32",
    axes=("B",),
    lives="table",
    doc="each row's place in the buffers of exact tiles and of queries",
    optional=True,
)
ENCODED_LENS = Port(
    name="encoded_lens",
    dtype="int32",
    axes=(2, "L", "B", "H"),
    lives="table",
    doc="tokens in encoded tiles before this step and after it",
    optional=True,
)
INPUTS = (INPUT_IDS, POSITION_IDS, QUERY_STARTS, SAMPLE_ROWS, KV_LENS, TILE_TABLE, SLOTS, ENCODED_LENS)
"""Inputs of a packed graph that are not the cache's own; the cache's come after them, layer by layer."""
PER_STEP = tuple(port.name for port in INPUTS if port.lives == "step")
"""The inputs of every packed graph that each step writes, in order; PackedStep has fields of these names."""

TILES = Port(
    name="kv.<l>.tiles", dtype="int8", axes=("tiles_<l>", "tile_bytes"), lives="pool", doc="the tile pool of layer l"
)
EXACT = Port(
    name="kv.<l>.exact",
    dtype="float16",
    axes=("slots", "kv_heads", "exact", "exact_halves"),
    lives="pool",
    doc="the tiles of layer l that are not encoded, as halves",
    optional=True,
)

QUERIES = Port(
    name="kv.<l>.queries",
    dtype="float32",
    axes=("slots", "query_heads", "held_queries", "key_dim"),
    lives="pool",
    doc="the newest queries of layer l, each at its position modulo their number",
    optional=True,
)
MARKS = Port(
    name="kv.<l>.marks",
    dtype="float32",
    axes=("tiles_<l>", "marks", 128),
    lives="pool",
    doc="marks of the tokens in the tile pool of layer l, by the attention that they get",
    optional=True,
)

SCORES_GRAPH, COMPACT_GRAPH, ENCODE_GRAPH = "scores", "compact", "encode"
"""The names of the graphs that serve a cache policy: they score the tokens of rows, copy tokens between tiles, encode tiles."""
LAST_POSITIONS = Port(
    name="last_positions",
    dtype="int64",
    axes=("B",),
    lives="step",
    doc="the position of each row's newest token",
)
IMPORTANCE = Port(
    name="importance.<l>",
    dtype="float32",
    axes=("B", "kv_heads", "128 M"),
    lives="step",
    doc="of each stored token of layer l, by the attention of the newest queries",
)
REDUNDANCY = Port(
    name="redundancy.<l>",
    dtype="float32",
    axes=("B", "kv_heads", "128 M"),
    lives="step",
    doc="of each stored token of layer l, by the keys that are like its own; empty where the policy does not ask for it",
)
MOVES = Port(
    name="moves.<l>",
    dtype="int32",
    axes=("moves_<l>", 4),
    lives="step",
    doc="of layer l: tile and place to read, tile and place to write",
)

PAST_LENS = Port(
    name="past_lens", dtype="int64", axes=("B",), lives="step", doc="tokens stored before this step, per row"
)
DENSE_INPUTS = (
    replace(INPUT_IDS, axes=("B", "T"), doc="new tokens of each row"),
    replace(POSITION_IDS, axes=("B", "T")),
    PAST_LENS,
    SAMPLE_ROWS,
)
"""The inputs of a graph of standard ops; the cache's come after them."""
PER_CALL = tuple(port.name for port in DENSE_INPUTS)
"""The inputs of every graph of standard ops that each run writes, in order; DenseCall has fields of these names."""
DENSE_CACHE = Port(
    name="kv.<l>.<side>",
    dtype="the graph's",
    axes=("B", "kv_heads", "tile_tokens", "dim"),
    lives="pool",
    doc="the keys (side `key`) or values (side `value`) of layer l",
)

LOGITS = Port(
    name="logits", dtype="float32", axes=("N", "vocab"), lives="step", doc="of the tokens that `sample_rows` names"
)
GREEDY = Port(
    name="greedy_tokens",
    dtype="int64",
    axes=("N",),
    lives="step",
    doc="index of the largest logit, the lowest one among equals; -1 where the logits are not finite",
)
LOGITS_WANTED = "logits_wanted"
"""An engine's own input, int64 [1], where it has one: with 0 the logits are not written. It is 1 where nobody gives it."""
OUTPUTS = (LOGITS, GREEDY)
"""The outputs that every graph has; an updated pool is called as the input with `.out` after it."""

CONDITION_INDEX = Port(
    name="cond.<name>.index",
    dtype="int32",
    axes=("T",),
    lives="step",
    doc="the entry that applies to each token, or each row (`[B]`); 0: none",
)
CONDITION_SCALE = Port(
    name="cond.<name>.scale",
    dtype="float32",
    axes=("T",),
    lives="step",
    doc="the factor of each token, or row; only where the condition is scaled",
)
CONDITION_TENSOR = Port(
    name="cond.<name>.<tensor>",
    dtype="the tensor's",
    axes=("capacity + 1", "..."),
    lives="condition",
    doc="the values of each entry; those of entry 0 are zeros",
)


def condition_ports(condition: str) -> tuple[str, str]:
    """Return the names of the ports of a condition's index and scale."""
    return CONDITION_INDEX.name.replace("<name>", condition), CONDITION_SCALE.name.replace("<name>", condition)


def condition_tensor(condition: str, tensor: str) -> str:
    """Return the name of the port of a condition's tensor."""
    return CONDITION_TENSOR.name.replace("<name>", condition).replace("<tensor>", tensor)


def inputs(manifest: Manifest) -> tuple[Port, ...]:
    """Return every input of the decoder graph that the manifest's cache, conditions and decoding kind call for."""
    return (*_own_inputs(manifest), *added_inputs(manifest))


def outputs(manifest: Manifest) -> tuple[Port, ...]:
    """Return every output of the decoder graph that is no cache: those of all graphs, then those that this one has.

    The latter are described by the graph itself, in the manifest. Each has a row for each sampled token.

    Raises:
        ArtifactError: an output has another shape.
    """
    fixed = {port.name for port in OUTPUTS}
    specs = manifest.graphs["decoder"].outputs
    return (*OUTPUTS, *(_added_output(spec) for spec in specs if spec.alias is None and spec.name not in fixed))


def added_inputs(manifest: Manifest) -> tuple[Port, ...]:
    """Return the inputs that only this graph has: index, scale and tensors of each condition, then `token_inputs`."""
    is_dense = manifest.cache.is_dense
    conditions = (
        port for name, each in manifest.conditions.items() for port in ports_of_condition(name, each, is_dense=is_dense)
    )
    own = token_ports(manifest.token_inputs)
    return (*conditions, *((replace(port, axes=("B", "T")) for port in own) if is_dense else own))


def token_ports(token_inputs: Mapping[str, str]) -> tuple[Port, ...]:
    """Return the ports of the manifest's `token_inputs`."""
    doc = "filled by the decoding kind; 0 where it names nothing"
    return tuple(Port(name=n, dtype=dtype, axes=("T",), lives="step", doc=doc) for n, dtype in token_inputs.items())


def packed_inputs(cache: Cache) -> tuple[Port, ...]:
    """Return every input that a packed graph with this cache has, without those of conditions."""
    encodes = any(layer.exact_bytes for layer in cache.layers)
    has_slots = encodes or any(layer.held_queries for layer in cache.layers)
    own = {SLOTS.name: has_slots, ENCODED_LENS.name: encodes}
    return (*(port for port in INPUTS if own.get(port.name, True)), *cache_inputs(cache))


def cache_inputs(cache: Cache) -> tuple[Port, ...]:
    """Return the packed graph's pools: the tiles of every layer, then what only some layers have, layer by layer."""

    def of(port: Port, has: Callable[[CacheLayer], int]) -> list[Port]:
        return [_of_layer(port, index, layer) for index, layer in enumerate(cache.layers) if has(layer)]

    return (
        *of(TILES, lambda layer: 1),
        *of(EXACT, lambda layer: layer.exact_bytes),
        *of(QUERIES, lambda layer: layer.held_queries),
        *of(MARKS, lambda layer: layer.marks),
    )


def pool_name(port: Port, layer: int) -> str:
    """Return the name of a layer's pool; port: TILES, EXACT, QUERIES or MARKS."""
    return port.name.replace("<l>", str(layer))


def exact_pools(cache: Cache) -> tuple[str, ...]:
    """Return the names of the buffers that hold exact tiles."""
    return tuple(pool_name(EXACT, index) for index, layer in enumerate(cache.layers) if layer.exact_bytes)


def dense_inputs(cache: Cache, dtype: str) -> tuple[Port, ...]:
    """Return every input that a graph of standard ops with this cache has, without those of conditions.

    dtype: of the cache.
    """
    pools = []
    for index, layer in enumerate(cache.layers):
        for side, dim in (("key", layer.key_dim), ("value", layer.value_dim)):
            axes = ("B", layer.kv_heads, cache.tile_tokens, dim)
            pools.append(replace(DENSE_CACHE, name=f"kv.{index}.{side}", dtype=dtype, axes=axes))
    return (*DENSE_INPUTS, *pools)


def _own_inputs(manifest: Manifest) -> tuple[Port, ...]:
    """The inputs that do not belong to conditions."""
    cache = manifest.cache
    if not cache.is_dense:
        return packed_inputs(cache)
    return dense_inputs(cache, "float32" if cache.kv_bits == 32 else manifest.dtype)


def _of_layer(port: Port, index: int, layer: CacheLayer) -> Port:
    """The port of one layer, with the sizes that are fixed for it."""
    fixed: dict[Axis, Axis] = {
        "tiles_<l>": f"tiles_{index}",
        "tile_bytes": layer.tile_bytes,
        "kv_heads": layer.kv_heads,
        "exact_halves": layer.exact_bytes // 2,
        **({} if layer.exact_tiles == 2 else {"exact": layer.exact_tiles}),
        "query_heads": layer.query_heads,
        "held_queries": layer.held_queries,
        "key_dim": layer.key_dim,
        "marks": layer.marks,
    }
    return replace(
        port, name=port.name.replace("<l>", str(index)), axes=tuple(fixed.get(axis, axis) for axis in port.axes)
    )


def ports_of_condition(name: str, condition: Condition, *, is_dense: bool = False) -> tuple[Port, ...]:
    """Return the ports of one condition: index, scale if it has one, then its tensors in order.

    is_dense: for a graph of standard ops, where tokens are a rectangle.
    """
    each: tuple[Axis, ...] = ("B",) if condition.per == "row" else ("B", "T") if is_dense else ("T",)
    per_step = (CONDITION_INDEX, CONDITION_SCALE) if condition.scaled else (CONDITION_INDEX,)
    tensors = (
        replace(
            CONDITION_TENSOR,
            name=CONDITION_TENSOR.name.replace("<tensor>", tensor),
            dtype=spec.dtype,
            axes=(condition.capacity + 1, *spec.shape),
        )
        for tensor, spec in condition.tensors.items()
    )
    ports = (*(replace(port, axes=each) for port in per_step), *tensors)
    return tuple(replace(port, name=port.name.replace("<name>", name)) for port in ports)


def _added_output(spec: TensorSpec) -> Port:
    rows, *sizes = spec.shape or (0,)
    fixed = [size for size in sizes if isinstance(size, int)]
    if isinstance(rows, int) or len(fixed) < len(sizes):
        raise ArtifactError(
            f"manifest.json: graphs.decoder.outputs: {spec.name!r}: got the shape [{', '.join(map(str, spec.shape))}], "
            "expected N, the rows that are sampled, and numbers after it; build the engine again"
        )
    return Port(name=spec.name, dtype=spec.dtype, axes=("N", *fixed), lives="step", doc="the graph's own")
