"""KVarNAttention: attention over a cache of two to eight bits."""

from __future__ import annotations

from enginewright.plugins.ops.attention_ports import KV_LENS, QUERY_STARTS, SCALE, SINKS, SOFTCAP, WINDOW
from enginewright.plugins.ops.op import FLOATS, Attribute, Op, Tensor

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
        QUERY_STARTS,
        KV_LENS,
        Tensor("tile_table", ("int32",), ("L", "B", "Hkv", "M"), "record ids in token order; entry 0 is not read"),
        Tensor("slots", ("int32",), ("B",), "each row's place in `exact`"),
        Tensor(
            "encoded_lens", ("int32",), ("two", "L", "B", "Hkv"), "of the tokens, how many are encoded, before/after"
        ),
        SINKS,
    ),
    outputs=(
        Tensor("output", FLOATS, ("T", "Hq", "D"), "attention output before the output projection"),
        Tensor("tiles_out", ("int8",), ("N", "bytes"), "the pool with the tiles encoded by this call", alias="tiles"),
        Tensor("exact_out", ("float16",), ("S", "Hkv", "F", "E"), "with the new tokens not encoded", alias="exact"),
    ),
    attributes=(
        Attribute("layer", "int", "index into the layers of kv_lens, tile_table and encoded_lens"),
        SCALE,
        WINDOW,
        SOFTCAP,
        Attribute("k_bits", "int", "width of a key's code: 2, 4 or 8", default=4),
        Attribute("v_bits", "int", "width of a value's code: 2, 4 or 8", default=2),
        Attribute("iterations", "int", "of the normaliser, for each tile", default=8),
        Attribute("robust", "int", "1: divide a tile by its root mean square before balancing it", default=0),
        Attribute("rotate_values", "int", "0: the weights contain the rotation of values and its inverse", default=1),
    ),
    oracle="enginewright.plugins.oracles.kvarn_attention:kvarn_attention",
)
