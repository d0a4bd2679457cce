"""Declares KVarNAttention, the op for attention over a cache of two to eight bits."""

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

HEAD_DIMS = (32, 64, 128, 256)
"""Sizes of heads that the kernels for GPUs are compiled for."""
BITS = ((2, 2), (4, 2), (4, 4), (8, 8))
"""Bits of a key's and of a value's code that they are compiled for."""


def unsupported(shapes: Shapes, attributes: Mapping[str, object]) -> str | None:
    """The node's head size, unless it is of HEAD_DIMS, or its bits, unless they are of BITS."""
    head_dim, bits = shapes["query"][2], (attributes["k_bits"], attributes["v_bits"])
    if head_dim not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        return f"kvarn: got heads of {head_dim}, expected one of {known}; export the model without kvarn"
    if bits not in BITS:
        known = ", ".join(f"k_bits={k},v_bits={v}" for k, v in BITS)
        got = f"k_bits={bits[0]},v_bits={bits[1]}"
        return f"kvarn: got {got}, expected one of {known}; export the model with one of these"
    return None


KVARN_ATTENTION = Op(
    name="KVarNAttention",
    version=1,
    doc=(
        "Causal attention of packed, ragged rows over a KVarN cache. The cache keeps the first and the newest tiles exact, "
        "and those in between in two to eight bits."
    ),
    inputs=(
        Tensor(
            "query",
            FLOATS,
            ("T", "Hq", "D"),
            "queries of the new tokens of all rows, one row after another, rotated by RoPE",
        ),
        Tensor(
            "key",
            FLOATS,
            ("T", "Hkv", "D"),
            "keys of the new tokens, rotated by RoPE; the op itself rotates them by the Hadamard matrix",
        ),
        Tensor("value", FLOATS, ("T", "Hkv", "D"), "values of the new tokens"),
        Tensor(
            "tiles", ("int8",), ("N", "bytes"), "the layer's pool of records; kvarn_tile_bytes gives a record's size"
        ),
        Tensor(
            "exact",
            ("float16",),
            ("S", "Hkv", "F", "E"),
            "the exact tiles, not encoded, with E = 2 TILE_TOKENS D; the oracle defines their layout",
        ),
        QUERY_STARTS,
        KV_LENS,
        Tensor(
            "tile_table", ("int32",), ("L", "B", "H", "M"), "ids of the records in token order; entry 0 is not read"
        ),
        Tensor("slots", ("int32",), ("B",), "index of each row in `exact`"),
        Tensor(
            "encoded_lens",
            ("int32",),
            ("two", "L", "B", "H"),
            "number of tokens that are encoded, before the call and after it; multiples of TILE_TOKENS, the first tile included",
        ),
        SINKS,
    ),
    outputs=(
        Tensor("output", FLOATS, ("T", "Hq", "D"), "result of attention, before the output projection"),
        Tensor(
            "tiles_out", ("int8",), ("N", "bytes"), "`tiles` with the records that this call encodes", alias="tiles"
        ),
        Tensor(
            "exact_out",
            ("float16",),
            ("S", "Hkv", "F", "E"),
            "`exact` with the new tokens that this call does not encode",
            alias="exact",
        ),
    ),
    attributes=(
        Attribute("layer", "int", "index of the node's layer in kv_lens, tile_table and encoded_lens"),
        SCALE,
        WINDOW,
        SOFTCAP,
        Attribute("k_bits", "int", "bits of a key's code: 2, 4 or 8", default=4),
        Attribute("v_bits", "int", "bits of a value's code: 2, 4 or 8", default=2),
        Attribute("iterations", "int", "number of balancing rounds for each tile", default=8, most=1000),
        Attribute(
            "robust",
            "int",
            "1: divide a tile by its root mean square before balancing it; 0: do not",
            default=0,
            most=1,
        ),
        Attribute(
            "rotate_values",
            "int",
            "1: the op rotates values and turns its output back; 0: the model's weights contain both rotations",
            default=1,
            most=1,
        ),
    ),
    oracle="enginewright.plugins.oracles.kvarn_attention:kvarn_attention",
    unsupported=unsupported,
)

KVARN_ATTENTION_CALL = Call(
    name="KVarNAttention",
    doc="encoded_before and encoded_after point at the node's layer.",
    fields=(
        Field("attention", ATTENTION_FIELDS),
        *fields("void*", "tiles", "exact"),
        *fields("const int32_t*", "slots", "encoded_before", "encoded_after"),
        *fields("int64_t", "record_count", "slot_count", "exact_tiles", "iterations"),
        *fields("int32_t", "k_bits", "v_bits", "robust", "rotate_values"),
    ),
    sizes=(
        KernelSizes("dims", HEAD_DIMS, "Head sizes."),
        KernelSizes("bits", BITS, "Bits of the codes of keys and values."),
    ),
)
