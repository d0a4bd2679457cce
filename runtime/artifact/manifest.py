"""The manifest: everything that one stage tells the next about an engine directory.

`directory.py` has the files that it names. Standard library only, so the runtime stays thin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from enginewright.runtime.artifact.generation_defaults import GenerationDefaults
from enginewright.runtime.artifact.value_ranges import (
    MOST_BATCH,
    MOST_BYTES,
    MOST_CONTEXT,
    MOST_ENTRIES,
    MOST_HEADS,
    MOST_LAYERS,
    MOST_NUMBERS,
    MOST_TOKENS,
    MOST_WIDTH,
    check_filled,
    check_names,
    check_ranges,
)

FORMAT = 1
TOKEN_INPUT_TYPES = ("int32", "int64", "float32")
CONDITION_TYPES = ("float32", "float16", "int64", "int32", "int8")
"""The types that a condition's tensor may have."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One named input or output of a graph.

    dtype: ONNX's name in lower case: "float32", "int8".
    shape: a number for each fixed size, a name for each size that varies.
    alias: the input whose buffer this output updates in place (a cache pool); None for other tensors.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    alias: str | None = None


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of the engine.

    path: relative to the engine directory.
    size: in bytes.
    sha256: of its content, in hex.
    """

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        check_ranges(self, size=(0, MOST_BYTES))


@dataclass(frozen=True, kw_only=True)
class BuiltGraph:
    """A graph as a backend built it; usable only where backend, version, compute and plugins all agree.

    backend: the name that `--backend` takes.
    version: of the backend's library, such as "1.31.1".
    compute: the processor or GPU that it was built for, such as "x86_64-avx512" or "sm_90".
    files: the built file first.
    plugins: version of each of our ops that it uses.
    """

    backend: str
    version: str
    compute: str
    files: tuple[File, ...]
    plugins: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One ONNX graph.

    files: the .onnx first, then its weights.
    inputs, outputs: its signature.
    ops: version of each of our ops that it uses.
    engines: the same graph as backends built it.
    """

    files: tuple[File, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ops: dict[str, int] = field(default_factory=dict)
    engines: tuple[BuiltGraph, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CacheLayer:
    """The cache of one attention layer.

    kv_heads: heads of key and value.
    key_dim, value_dim: numbers of one head's key and value.
    tile_bytes: bytes of a tile in the layer's pool.
    window: tokens that a token sees, itself included; 0: all.
    exact_bytes: bytes of a tile that is not encoded, in a layer that encodes others (KVarN); 0 in a layer that encodes none.
    exact_tiles: such tiles of a head, in a buffer of their own: a request's first one, and its newest.
    query_heads, held_queries: the query's heads, and its newest queries of each row, by which a policy scores; 0: none stay.
    marks: numbers that the graph keeps of each token's attention, for a cache policy; 0: none.
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    tile_bytes: int
    window: int = 0
    exact_bytes: int = 0
    exact_tiles: int = 2
    query_heads: int = 0
    held_queries: int = 0
    marks: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, kv_heads=(1, MOST_HEADS), key_dim=(1, MOST_WIDTH), value_dim=(1, MOST_WIDTH))
        check_ranges(self, tile_bytes=(1, MOST_BYTES), window=(0, MOST_CONTEXT), exact_bytes=(0, MOST_BYTES))
        check_ranges(self, query_heads=(0, MOST_HEADS), held_queries=(0, MOST_WIDTH), marks=(0, MOST_HEADS))
        check_ranges(self, exact_tiles=(2, MOST_WIDTH))


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The buffers that the decoder graph updates, `kv.<l>...` for layer l; `decoder_graph.py` has their shapes.

    kind: "paged" or "kvarn", where tiles of many rows lie in one pool; "dense", where each row has one tile, as long as
        a request may be.
    tile_tokens: tokens of one KV head that a tile holds.
    kv_bits: width of an element that is not encoded.
    layers: one entry for each attention layer.
    policy: {"kind": ..., its options}: which tokens of a request stay; empty: all of them.
    """

    kind: str
    tile_tokens: int
    kv_bits: int
    layers: tuple[CacheLayer, ...]
    policy: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(self, tile_tokens=(0, MOST_CONTEXT), kv_bits=(0, 64))

    @property
    def is_dense(self) -> bool:
        """Whether it is the cache of a graph of standard ops."""
        return self.kind == "dense"


@dataclass(frozen=True, kw_only=True)
class ConditionTensor:
    """A tensor of which each entry of a condition has its own values.

    dtype: ONNX's name in lower case: one of CONDITION_TYPES.
    shape: of one entry's values.
    """

    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in CONDITION_TYPES:
            raise ValueError(f"dtype: got {self.dtype!r}, expected one of {', '.join(CONDITION_TYPES)}")
        if any(size < 1 for size in self.shape) or math.prod(self.shape) > MOST_NUMBERS:
            raise ValueError(
                f"shape: got {list(self.shape)}, expected sizes of at least 1, of {MOST_NUMBERS} numbers at most"
            )


@dataclass(frozen=True, kw_only=True)
class LayerVectors:
    """The meaning of a condition's entries that are vectors of layers: of its one tensor, `vectors` [n, d].

    `LLM.load_vector` reads such entries from files, and `Sampling.vector` names one.

    at: where a vector is added: "heads", to the output of the attention's projection; "stream", to the residual stream after
        the layer.
    layers: the layer of each row, ascending.
    model: sha256 of the weights of the model that vectors have to be made on; empty: unknown, so that any are taken.
    """

    at: Literal["heads", "stream"]
    layers: tuple[int, ...]
    model: str = ""

    def __post_init__(self) -> None:
        check_ranges(self, layers=(0, MOST_LAYERS))
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers: got {list(self.layers)}, expected one or more from 0 up, ascending")


@dataclass(frozen=True, kw_only=True)
class AdapterTarget:
    """Linear layers of one name and shape that adapters may change.

    module: the layers' name in the model, with {} for the block's number.
    layers: the blocks' numbers, in the order of the factors' first axis.
    inputs, outputs: the layers' size.
    """

    module: str
    layers: tuple[int, ...]
    inputs: int
    outputs: int

    def __post_init__(self) -> None:
        check_filled(self, "layers")
        check_ranges(self, layers=(0, MOST_LAYERS), inputs=(1, MOST_WIDTH), outputs=(1, MOST_WIDTH))


@dataclass(frozen=True, kw_only=True)
class AdapterLayout:
    """The meaning of a condition's entries that are LoRA adapters.

    A target NAME has the tensors NAME_a [layers, rank, inputs] and NAME_b [layers, rank, outputs], the second factor turned.

    rank: the largest of an adapter; the rows of smaller ones end in zeros.
    """

    rank: int
    targets: dict[str, AdapterTarget]

    def __post_init__(self) -> None:
        check_filled(self, "targets")
        check_ranges(self, rank=(1, MOST_WIDTH))


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Something that a request may name, such as a vector or an adapter, and that the decoder graph applies.

    The graph of a condition NAME has the inputs `cond.NAME.index`, `cond.NAME.scale` if it is scaled, and
    `cond.NAME.<tensor>` for each of its tensors; `decoder_graph.py` has their shapes.

    capacity: the most entries that a loaded engine holds at once.
    tensors: by name, the values that an entry has.
    per: whether the graph is told the entry of each token, or of each row.
    applies: "all": to every token of the request; "decoded": to those after its prompt, and to the prompt's last. Only the
        entry of a token can tell them apart, not that of a row.
    scaled: whether a request also gives a factor.
    entries: by name, files with the values of the entries that every loaded engine has: arrays by the names of the tensors,
        as numpy's .npz.
    vectors: what the entries mean where they are vectors of layers; None: they are something else. At most one condition of
        an engine has it.
    adapters: what the entries mean where they are LoRA adapters; None: they are something else. At most one condition of an
        engine has it.
    """

    capacity: int
    tensors: dict[str, ConditionTensor]
    per: Literal["token", "row"] = "token"
    applies: Literal["all", "decoded"] = "all"
    scaled: bool = False
    entries: dict[str, File] = field(default_factory=dict)
    vectors: LayerVectors | None = None
    adapters: AdapterLayout | None = None

    def __post_init__(self) -> None:
        check_ranges(self, capacity=(max(len(self.entries), 1), MOST_ENTRIES))
        if not self.tensors or {"index", "scale"} & self.tensors.keys():
            got = ", ".join(self.tensors) or "none"
            raise ValueError(f"tensors: got {got}, expected one or more, none of them called index or scale")
        if self.per == "row" and self.applies == "decoded":
            raise ValueError('applies: got "decoded" with an entry per row, expected "all", or an entry per token')
        check_names("tensors", self.tensors)
        if self.vectors is not None:
            shape = self.tensors["vectors"].shape if set(self.tensors) == {"vectors"} else ()
            if len(shape) != 2 or shape[0] != len(self.vectors.layers):
                raise ValueError(
                    f"vectors: got the tensors {', '.join(self.tensors)} for {len(self.vectors.layers)} layers, expected one, "
                    "vectors, with a row for each layer"
                )


@dataclass(frozen=True, kw_only=True)
class Model:
    """The facts about the model itself that the runtime needs.

    family: the checkpoint's model_type.
    vocab_size: rows of its logits.
    hidden_size: numbers of a token's state.
    max_positions: the longest context it was made for.
    parameters: their number.
    eos_token_ids: tokens that end a completion.
    bos_token_id: the token that texts begin with, if there is one.
    """

    family: str
    vocab_size: int
    hidden_size: int
    max_positions: int
    parameters: int
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    def __post_init__(self) -> None:
        check_ranges(self, vocab_size=(1, MOST_WIDTH), hidden_size=(1, MOST_WIDTH), max_positions=(0, MOST_CONTEXT))
        check_ranges(self, parameters=(0, MOST_BYTES), eos_token_ids=(0, MOST_WIDTH))
        if self.bos_token_id is not None:
            check_ranges(self, bos_token_id=(0, MOST_WIDTH))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that the engine serves.

    max_batch: rows in one step.
    max_context: tokens of one request, prompt and completion together.
    """

    max_batch: int
    max_context: int

    def __post_init__(self) -> None:
        check_ranges(self, max_batch=(1, MOST_BATCH), max_context=(1, MOST_CONTEXT))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record that one stage hands to the next.

    name: of the checkpoint.
    created_by: the package and version that wrote it.
    model, limits, cache: what is served, how much of it at once, and the buffers for it.
    graphs: by name; "decoder" is the one that generates, others serve it: "scores" and "compact" serve its cache policy.
    generation: the model's own defaults of how tokens are chosen.
    decoding: {"kind": "autoregressive"}, or another kind with keys of its own; `k`, in every kind, is the most tokens that
        a row brings into a step, 1 where it is missing, and `verify` whether those after the first are drafts, false where it
        is missing.
    weights: how weights are stored: {"precision": "int4", "block_size": 32, ...}.
    conditions: by name, what a request may name so that the graph applies it.
    token_inputs: by name, the types of further inputs of the graph that the decoding kind fills for each token, out of
        TOKEN_INPUT_TYPES.
    applied: the methods in order, each {"name": ..., its config}; provenance, not behaviour.
    tokenizer: files under tokenizer/; empty where the checkpoint has none.
    format: version of this record.
    """

    name: str
    created_by: str
    model: Model
    limits: Limits
    cache: Cache
    graphs: dict[str, Graph]
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    decoding: dict[str, Any] = field(default_factory=lambda: {"kind": "autoregressive"})
    weights: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, Condition] = field(default_factory=dict)
    token_inputs: dict[str, str] = field(default_factory=dict)
    applied: tuple[dict[str, Any], ...] = ()
    tokenizer: tuple[File, ...] = ()
    format: int = FORMAT

    def __post_init__(self) -> None:
        width = self.decoding.get("k", 1)
        if type(width) is not int or not 1 <= width <= MOST_TOKENS:
            raise ValueError(f"decoding: k: got {width!r}, expected a whole number from 1 to {MOST_TOKENS}")
        check_names("conditions", self.conditions)
        if len(of_layers := [name for name, each in self.conditions.items() if each.vectors is not None]) > 1:
            raise ValueError(f"conditions: got {' and '.join(of_layers)} of vectors, expected one at most")
        for name, dtype in self.token_inputs.items():
            if dtype not in TOKEN_INPUT_TYPES:
                raise ValueError(f"token_inputs: {name}: got {dtype!r}, expected one of {', '.join(TOKEN_INPUT_TYPES)}")

    @property
    def dtype(self) -> str:
        """The type that the graphs compute in: float32, float16 or bfloat16."""
        found = self.weights.get("dtype", self.weights.get("kind"))
        return found if found in ("float16", "bfloat16") else "float32"

    @property
    def tokens_per_row(self) -> int:
        """The most tokens that a decoding row brings into a step."""
        return int(self.decoding.get("k", 1))

    @property
    def takes_back(self) -> bool:
        """Whether the tokens after the first that a decoding row brings into a step are drafts."""
        return bool(self.decoding.get("verify", False))

    def files(self) -> Iterator[File]:
        """Every file the manifest names."""
        for graph in self.graphs.values():
            yield from graph.files
            for engine in graph.engines:
                yield from engine.files
        for condition in self.conditions.values():
            yield from condition.entries.values()
        yield from self.tokenizer
