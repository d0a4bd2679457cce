"""PagedAttention: attention over a tiled cache of 16 or 32 bit elements."""

from __future__ import annotations

from enginewright.plugins.ops.attention_ports import KV_LENS, QUERY_STARTS, SCALE, SINKS, SOFTCAP, WINDOW
from enginewright.plugins.ops.op import FLOATS, Attribute, Op, Tensor

PAGED_ATTENTION = Op(
    name="PagedAttention",
    version=1,
    doc="Causal attention of packed, ragged rows over a tiled cache; writes the new keys and values first.",
    inputs=(
        Tensor("query", FLOATS, ("T", "Hq", "D"), "new tokens of all rows, one row after another, rotated"),
        Tensor("key", FLOATS, ("T", "Hkv", "D"), "their keys, rotated"),
        Tensor("value", FLOATS, ("T", "Hkv", "Dv"), "their values"),
        Tensor("tiles", ("int8",), ("N", "bytes"), "the layer's tile pool; see tile_bytes"),
        QUERY_STARTS,
        KV_LENS,
        Tensor("tile_table", ("int32",), ("L", "B", "Hkv", "M"), "tile ids in token order; only ids in use are read"),
        SINKS,
    ),
    outputs=(
        Tensor("output", FLOATS, ("T", "Hq", "Dv"), "attention output before the output projection"),
        Tensor("tiles_out", ("int8",), ("N", "bytes"), "the pool with the new tokens written", alias="tiles"),
    ),
    attributes=(
        Attribute("layer", "int", "index into the first axis of kv_lens and tile_table"),
        SCALE,
        WINDOW,
        SOFTCAP,
        Attribute("kv_bits", "int", "width of a stored element: 16 (IEEE half) or 32 (float32)", default=16),
    ),
    oracle="enginewright.plugins.oracles.paged_attention:paged_attention",
)
