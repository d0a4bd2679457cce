"""Declares PagedAttention, the op for attention over a tiled cache of 16- or 32-bit elements."""

from __future__ import annotations

from collections.abc import Mapping

from enginewright.plugins.ops.attention_ports import (
    ATTENTION_FIELDS,
    KV_LENS,
    QUERY_STARTS,
    SCALE,
    SINKS,
    SOFTCAP,
    WINDOW,
)
from enginewright.plugins.ops.call import Call, Field, KernelSizes, fields
from enginewright.plugins.ops.op import FLOATS, Attribute, Op, Shapes, Tensor

HEAD_DIMS = ((32, 32), (64, 64), (80, 80), (96, 96), (128, 128), (256, 256))
"""Sizes of heads (of queries and keys, of values) that the kernels for GPUs are compiled for."""


def unsupported(shapes: Shapes, attributes: Mapping[str, object]) -> str | None:
    """The node's head sizes, unless they are of HEAD_DIMS."""
    found = (shapes["query"][2], shapes["value"][2])
    if found in HEAD_DIMS:
        return None
    known = ", ".join(f"{k} and {v}" for k, v in HEAD_DIMS)
    return (
        f"got heads of {found[0]} and {found[1]}, expected one of {known}; build with --plugins none --backend tensorrt"
    )


PAGED_ATTENTION = Op(
    name="PagedAttention",
    version=1,
    doc="Causal attention of packed, ragged rows over a tiled cache. It writes the new keys and values to the cache first.",
    inputs=(
        Tensor(
            "query",
            FLOATS,
            ("T", "Hq", "D"),
            "queries of the new tokens of all rows, one row after another, already rotated",
        ),
        Tensor("key", FLOATS, ("T", "Hkv", "D"), "keys of the new tokens, already rotated"),
        Tensor("value", FLOATS, ("T", "Hkv", "Dv"), "values of the new tokens"),
        Tensor("tiles", ("int8",), ("N", "bytes"), "the layer's pool of tiles; tile_bytes gives a tile's size"),
        QUERY_STARTS,
        KV_LENS,
        Tensor(
            "tile_table",
            ("int32",),
            ("L", "B", "H", "M"),
            "ids of the tiles in token order; only ids in use are read",
        ),
        SINKS,
    ),
    outputs=(
        Tensor("output", FLOATS, ("T", "Hq", "Dv"), "result of attention, before the output projection"),
        Tensor("tiles_out", ("int8",), ("N", "bytes"), "`tiles` with the new tokens written to it", alias="tiles"),
    ),
    attributes=(
        Attribute("layer", "int", "index of the node's layer in kv_lens and tile_table"),
        SCALE,
        WINDOW,
        SOFTCAP,
        Attribute("kv_bits", "int", "bits of a stored element: 16 (IEEE half) or 32 (float32)", default=16),
    ),
    oracle="enginewright.plugins.oracles.paged_attention:paged_attention",
    unsupported=unsupported,
)

PAGED_ATTENTION_CALL = Call(
    name="PagedAttention",
    doc="",
    fields=(
        Field("attention", ATTENTION_FIELDS),
        Field("tiles", "void*"),
        *fields("int64_t", "tile_count", "kv_bits"),
    ),
    sizes=(KernelSizes("dims", HEAD_DIMS, "Head sizes: of queries and keys; of values."),),
)
