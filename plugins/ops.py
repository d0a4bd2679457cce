"""Every custom op, declared once.

The torch.library op, its shape function, the ONNX schema and the names the C++ side exports all derive from these
declarations (`exporters/capture/op_bindings.py`, `tests/plugins/`), so a signature or a default is written in one place.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

DOMAIN = "enginewright"
TILE_TOKENS = 128
"""Tokens of one KV head that one cache tile holds."""

FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Tensor:
    """One input or output of an op.

    types: the element types it may have; inputs and outputs with the same tuple of several types share one type.
    shape: named sizes; a name that stands twice means equal sizes, the name of an attribute means its value.
    optional: an input that may be absent.
    variadic: the last input, any number of tensors of one type, each of this shape.
    alias: for an output, the input whose buffer it updates in place where the host binds both to one buffer.
    """

    name: str
    types: tuple[str, ...]
    shape: tuple[str, ...]
    doc: str
    optional: bool = False
    variadic: bool = False
    alias: str | None = None


@dataclass(frozen=True)
class Attribute:
    """A constant of a node; required when it has no default."""

    name: str
    type: Literal["int", "float"]
    doc: str
    default: int | float | None = None


@dataclass(frozen=True)
class Op:
    """A custom op of domain `enginewright`; `oracle` names its numpy definition as `module:function`."""

    name: str
    version: int
    doc: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[Attribute, ...]
    oracle: str

    @property
    def torch_name(self) -> str:
        """The name in `torch.ops.enginewright`: PagedAttention -> paged_attention."""
        words = self.name.replace("KVarN", "Kvarn")  # one word, however its authors spell it
        return "".join("_" + c.lower() if c.isupper() else c for c in words).lstrip("_")

    def load_oracle(self) -> Callable[..., Any]:
        """Import and return the op's numpy definition."""
        module, function = self.oracle.split(":")
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return loaded


# What the attention ops have in common.
_QUERY_STARTS = Tensor("query_starts", ("int32",), ("B1",), "row b owns tokens query_starts[b] .. query_starts[b + 1]")
_KV_LENS = Tensor("kv_lens", ("int32",), ("L", "B", "Hkv"), "tokens held before this call, per layer, row and KV head")
_SINKS = Tensor(
    "sinks", ("float32",), ("Hq",), "one extra logit per head that takes weight but no value", optional=True
)
_SCALE = Attribute("scale", "float", "factor on q . k")
_WINDOW = Attribute("window", "int", "a token sees itself and the window - 1 before it; 0: all", default=0)
_SOFTCAP = Attribute("softcap", "float", "logits become softcap * tanh(logits / softcap); 0: off", default=0.0)

PAGED_ATTENTION = Op(
    name="PagedAttention",
    version=1,
    doc="Causal attention of packed, ragged rows over a tiled cache; writes the new keys and values first.",
    inputs=(
        Tensor("query", FLOATS, ("T", "Hq", "D"), "new tokens of all rows, one row after another, rotated"),
        Tensor("key", FLOATS, ("T", "Hkv", "D"), "their keys, rotated"),
        Tensor("value", FLOATS, ("T", "Hkv", "Dv"), "their values"),
        Tensor("tiles", ("int8",), ("N", "bytes"), "the layer's tile pool; see tile_bytes"),
        _QUERY_STARTS,
        _KV_LENS,
        Tensor("tile_table", ("int32",), ("L", "B", "Hkv", "M"), "tile ids in token order; only ids in use are read"),
        _SINKS,
    ),
    outputs=(
        Tensor("output", FLOATS, ("T", "Hq", "Dv"), "attention output before the output projection"),
        Tensor("tiles_out", ("int8",), ("N", "bytes"), "the pool with the new tokens written", alias="tiles"),
    ),
    attributes=(
        Attribute("layer", "int", "index into the first axis of kv_lens and tile_table"),
        _SCALE,
        _WINDOW,
        _SOFTCAP,
        Attribute("kv_bits", "int", "width of a stored element: 16 (IEEE half) or 32 (float32)", default=16),
    ),
    oracle="enginewright.plugins.oracles.paged_attention:paged_attention",
)

KVARN_ATTENTION = Op(
    name="KVarNAttention",
    version=1,
    doc="Causal attention of packed, ragged rows over a KVarN cache: tiles of two to eight bits between exact ones.",
    inputs=(
        Tensor("query", FLOATS, ("T", "Hq", "D"), "new tokens of all rows, one row after another, rotated by RoPE"),
        Tensor("key", FLOATS, ("T", "Hkv", "D"), "their keys, rotated by RoPE; the op rotates them by Hadamard"),
        Tensor("value", FLOATS, ("T", "Hkv", "D"), "their values"),
        Tensor("tiles", ("int8",), ("N", "bytes"), "the layer's pool of records; see kvarn_tile_bytes"),
        Tensor("exact", ("float16",), ("S", "Hkv", "F", "E"), "tiles not encoded, E = 2 TILE_TOKENS D; see the oracle"),
        _QUERY_STARTS,
        _KV_LENS,
        Tensor("tile_table", ("int32",), ("L", "B", "Hkv", "M"), "record ids in token order; entry 0 is not read"),
        Tensor("slots", ("int32",), ("B",), "each row's place in `exact`"),
        Tensor(
            "encoded_lens", ("int32",), ("two", "L", "B", "Hkv"), "of the tokens, how many are encoded, before/after"
        ),
        _SINKS,
    ),
    outputs=(
        Tensor("output", FLOATS, ("T", "Hq", "D"), "attention output before the output projection"),
        Tensor("tiles_out", ("int8",), ("N", "bytes"), "the pool with the tiles encoded by this call", alias="tiles"),
        Tensor("exact_out", ("float16",), ("S", "Hkv", "F", "E"), "with the new tokens not encoded", alias="exact"),
    ),
    attributes=(
        Attribute("layer", "int", "index into the layers of kv_lens, tile_table and encoded_lens"),
        _SCALE,
        _WINDOW,
        _SOFTCAP,
        Attribute("k_bits", "int", "width of a key's code: 2, 4 or 8", default=4),
        Attribute("v_bits", "int", "width of a value's code: 2, 4 or 8", default=2),
        Attribute("iterations", "int", "of the normaliser, for each tile", default=8),
        Attribute("robust", "int", "1: divide a tile by its root mean square before balancing it", default=0),
        Attribute("rotate_values", "int", "0: the weights contain the rotation of values and its inverse", default=1),
    ),
    oracle="enginewright.plugins.oracles.kvarn_attention:kvarn_attention",
)

SPLIT_QKV = Op(
    name="SplitQkv",
    version=1,
    doc="Splits a packed projection into heads; on the way normalises (RMS over a head) and rotates query and key.",
    inputs=(
        Tensor("packed", FLOATS, ("one", "T", "P"), "query, key and value heads of each token, in this order"),
        Tensor("cos", FLOATS, ("one", "T", "R"), "of each token's angles; 2 R dimensions are rotated", optional=True),
        Tensor("sin", FLOATS, ("one", "T", "R"), "given if and only if cos is", optional=True),
        Tensor("query_norm", FLOATS, ("head_dim",), "scale of the query heads' RMS norm", optional=True),
        Tensor("key_norm", FLOATS, ("head_dim",), "given if and only if query_norm is", optional=True),
    ),
    outputs=(
        Tensor("query", FLOATS, ("T", "query_heads", "head_dim"), "normalised, then rotated"),
        Tensor("key", FLOATS, ("T", "kv_heads", "head_dim"), "normalised, then rotated"),
        Tensor("value", FLOATS, ("T", "kv_heads", "value_dim"), "as it was"),
    ),
    attributes=(
        Attribute("query_heads", "int", "heads of the query"),
        Attribute("kv_heads", "int", "heads of key and value"),
        Attribute("head_dim", "int", "of query and key; dimension i < R turns with dimension i + R"),
        Attribute("value_dim", "int", "of the value"),
        Attribute("epsilon", "float", "added to the mean square of a head", default=1e-6),
    ),
    oracle="enginewright.plugins.oracles.split_qkv:split_qkv",
)

DEPTH_MIX = Op(
    name="DepthMix",
    version=1,
    doc="Depth-Attention: mixes each token's value with those of earlier layers, by a softmax of query . key over layers.",
    inputs=(
        Tensor("query", FLOATS, ("T", "Hq", "D"), "as attention reads it; the heads of a group are averaged"),
        Tensor("key", FLOATS, ("T", "Hkv", "D"), "the layer's own"),
        Tensor("value", FLOATS, ("T", "Hkv", "Dv"), "the layer's own"),
        Tensor(
            "sources", FLOATS, ("T", "Hkv", "any"), "key, mixed value of each source, in layer order", variadic=True
        ),
    ),
    outputs=(Tensor("mixed", FLOATS, ("T", "Hkv", "Dv"), "takes the value's place in attention and in the cache"),),
    attributes=(_SCALE,),
    oracle="enginewright.plugins.oracles.depth_mix:mix_values",
)

GREEDY_SAMPLE = Op(
    name="GreedySample",
    version=1,
    doc="The most probable token of each row, where the logits are: a host that decodes greedily need not read them.",
    inputs=(Tensor("logits", FLOATS, ("N", "V"), "of the sampled tokens"),),
    outputs=(
        Tensor("tokens", ("int64",), ("N",), "index of the largest logit, the lowest among equals; -1: not finite"),
    ),
    attributes=(),
    oracle="enginewright.plugins.oracles.greedy_sample:greedy_sample",
)

CLP_EMIT = Op(
    name="ClpEmit",
    version=1,
    doc="Tokens behind the next one: a classifier says how many, and only that many of each row's heads are evaluated.",
    inputs=(
        Tensor("hidden", FLOATS, ("N", "d"), "states of the sampled tokens, as the output projection reads them"),
        Tensor("greedy", ("int64",), ("N",), "the model's own next tokens; behind a negative one nothing is emitted"),
        Tensor("classifier_weight", ("float32",), ("classes", "d"), "class L: L heads are right"),
        Tensor("classifier_bias", ("float32",), ("classes",), ""),
        Tensor(
            "up_weight", FLOATS, ("extra", "h", "d"), "of each head's hidden layer; head j = 1 .. is about token j + 1"
        ),
        Tensor("up_bias", FLOATS, ("extra", "h"), ""),
        Tensor("out_bias", FLOATS, ("extra", "V"), ""),
        Tensor("out_weight", FLOATS, ("extra", "V", "h"), "of each head's logits; or out_codes", optional=True),
        Tensor(
            "out_codes", ("int8",), ("extra", "V", "h"), "the same in 8 bits: code * scale of the row", optional=True
        ),
        Tensor("out_scales", ("float32",), ("extra", "V"), "given if and only if out_codes is", optional=True),
        Tensor("sample_rows", ("int64",), ("N",), "given: only a row's last token emits", optional=True),
        Tensor("query_starts", ("int32",), ("B1",), "given if and only if sample_rows is", optional=True),
    ),
    outputs=(
        Tensor("tokens", ("int64",), ("N", "k"), "greedy, then the heads' tokens, lowest id among equals; then -1"),
        Tensor(
            "counts", ("int64",), ("N",), "1 + L: how many of a row's tokens are emitted; a head not finite ends it"
        ),
    ),
    attributes=(
        Attribute("k", "int", "tokens of one emission: 1 + the number of heads"),
        Attribute("tau", "float", "L is 0 where the likeliest class is less likely than this"),
        Attribute("activation", "int", "of the hidden layer: 0: GELU (erf), 1: SiLU", default=0),
        Attribute("residual", "int", "1: the state is added behind the activation (h = d)", default=0),
    ),
    oracle="enginewright.plugins.oracles.clp_emit:clp_emit",
)

OPS: dict[str, Op] = {
    op.name: op for op in (PAGED_ATTENTION, KVARN_ATTENTION, DEPTH_MIX, SPLIT_QKV, GREEDY_SAMPLE, CLP_EMIT)
}


def op_versions(names: Iterable[str]) -> dict[str, int]:
    """The versions of the named ops, in order of their names."""
    return {name: OPS[name].version for name in sorted(set(names))}


def tile_bytes(head_dim: int, value_dim: int, kv_bits: int) -> int:
    """Bytes of one PagedAttention tile: TILE_TOKENS keys, then TILE_TOKENS values, of one KV head.

    Inside it is the kernels' own affair, and nothing persists it. On the CPU keys are [TILE_TOKENS / 16][head_dim][16]
    (scores vectorise over tokens, without horizontal sums) and values [TILE_TOKENS][value_dim].
    """
    return TILE_TOKENS * (head_dim + value_dim) * kv_bits // 8


def kvarn_tile_bytes(head_dim: int, k_bits: int, v_bits: int) -> int:
    """Bytes of one KVarN record: TILE_TOKENS keys and values of one KV head as `oracles/kvarn.py` lays them out.

    A side has its codes, a scale and an offset (float16) for each row of its tile, and a scale for each column.
    """
    codes = TILE_TOKENS * head_dim * (k_bits + v_bits) // 8
    return codes + 2 * (2 * head_dim + TILE_TOKENS) + 2 * (head_dim + 2 * TILE_TOKENS)


def kvarn_exact_bytes(head_dim: int) -> int:
    """Bytes of one exact tile of a KVarN cache: TILE_TOKENS keys and values of one KV head as halves."""
    return TILE_TOKENS * 2 * head_dim * 2
