"""The engine directory: what every stage reads and writes, and the only thing that crosses a stage.

    my-model/
      manifest.json             Manifest: the only file with meaning; names every other file with its sha256
      graphs/<name>.onnx        one graph, its weights in <name>.onnx.data beside it
      engines/<name>.<tag>...   what a backend built from a graph, valid only where Engine says
      tokenizer/                tokenizer.json, tokenizer_config.json, chat_template.jinja, as in the checkpoint
      reports/                  measurements about this engine; not part of its identity

Standard library only, so the runtime stays thin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One named graph input or output.

    dtype: ONNX name in lower case: "float32", "int8".
    shape: ints for fixed sizes, strings for named dynamic ones.
    alias: for an output that updates an input's buffer in place (a cache pool), that input's name.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    alias: str | None = None


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of the engine: path relative to its root, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class BuiltGraph:
    """What a backend built from one graph; usable only where backend, version, compute and plugins all agree.

    version: of the backend's library ("1.31.1"). compute: "x86_64-avx512", "sm90". plugins: op -> version.
    """

    backend: str
    version: str
    compute: str
    files: tuple[File, ...]
    plugins: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One ONNX graph: its files (the .onnx first), signature, custom ops with versions, and engines built from it."""

    files: tuple[File, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ops: dict[str, int] = field(default_factory=dict)
    engines: tuple[BuiltGraph, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CacheLayer:
    """Cache of one attention layer.

    window: tokens a token sees, itself included; 0: all. exact_bytes: of a tile that is not encoded, where tiles are
    (KVarN: a sequence's first tile and its newest, which lie in a buffer of their own); 0: tiles are kept as they are.
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    tile_bytes: int
    window: int = 0
    exact_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The buffers the decoder graph works on, per layer.

    `kv.<l>.tiles` int8 [tiles, tile_bytes]; `kv.<l>.exact` float16 [rows, kv_heads, tiles of a row, exact_bytes / 2] where
    the layer has them. kind: "paged" or "kvarn"; "dense": each row has one tile as long as a request may be, which are
    `kv.<l>.key` and `kv.<l>.value` [rows, kv_heads, tile_tokens, dim]. kv_bits: width of an element that is not encoded.
    """

    kind: str
    tile_tokens: int
    kv_bits: int
    layers: tuple[CacheLayer, ...]

    @property
    def is_dense(self) -> bool:
        """Whether it is that of a graph of standard ops."""
        return self.kind == "dense"


@dataclass(frozen=True, kw_only=True)
class Model:
    """What the runtime has to know about the model itself.

    family: the checkpoint's model_type. max_positions: longest context it was made for. parameters: their number.
    """

    family: str
    vocab_size: int
    hidden_size: int
    max_positions: int
    parameters: int
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the engine serves at most: rows in one step, and tokens (prompt and completion) in one request."""

    max_batch: int
    max_context: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one stage hands to the next.

    decoding: {"kind": "autoregressive"} or another kind with its own keys.
    weights: how weights are stored: {"precision": "int4", "block_size": 32, ...}.
    applied: methods in order, each {"name": ..., its config}: provenance, not behaviour.
    tokenizer: files under tokenizer/; empty when the checkpoint has none.
    """

    name: str
    created_by: str
    model: Model
    limits: Limits
    cache: Cache
    graphs: dict[str, Graph]
    decoding: dict[str, Any] = field(default_factory=lambda: {"kind": "autoregressive"})
    weights: dict[str, Any] = field(default_factory=dict)
    applied: tuple[dict[str, Any], ...] = ()
    tokenizer: tuple[File, ...] = ()
    format: int = FORMAT

    @property
    def dtype(self) -> str:
        """What the graphs compute in: float32, float16 or bfloat16."""
        found = self.weights.get("dtype", self.weights.get("kind"))
        return found if found in ("float16", "bfloat16") else "float32"

    def files(self) -> Iterator[File]:
        """Every file the manifest names."""
        for graph in self.graphs.values():
            yield from graph.files
            for engine in graph.engines:
                yield from engine.files
        yield from self.tokenizer
