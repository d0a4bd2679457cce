"""Declares CompactTiles, the op that moves the tokens that stay in a cache together."""

from __future__ import annotations

from enginewright.plugins.ops.call import Call, Field, fields
from enginewright.plugins.ops.op import Attribute, Op, Tensor

COMPACT_TILES = Op(
    name="CompactTiles",
    version=1,
    doc=(
        "Copies keys and values of single tokens to other places of a layer's pool, and the tokens' marks with them. No tile "
        "is both source and target in a call, and no place is the target of two moves; so moves have no order."
    ),
    inputs=(
        Tensor("tiles", ("int8",), ("N", "bytes"), "the layer's pool of tiles, as PagedAttention has it"),
        Tensor(
            "moves",
            ("int32",),
            ("K", "four"),
            "tile and place in it of the token, then tile and place that it moves to; places are 0 to 127",
        ),
        Tensor("marks", ("float32",), ("N", "C", "places"), "the marks of MarkTokens", optional=True),
    ),
    outputs=(
        Tensor("tiles_out", ("int8",), ("N", "bytes"), "`tiles` after the moves", alias="tiles"),
        Tensor(
            "marks_out",
            ("float32",),
            ("N", "C", "places"),
            "`marks` after the moves; there if and only if `marks` is",
            optional=True,
            alias="marks",
        ),
    ),
    attributes=(
        Attribute("head_dim", "int", "size of a key", least=1),
        Attribute("value_dim", "int", "size of a value", least=1),
        Attribute("kv_bits", "int", "bits of a stored element: 16 (IEEE half) or 32 (float32)", default=16),
    ),
    oracle="enginewright.plugins.oracles.compact_tiles:compact_tiles",
)

COMPACT_TILES_CALL = Call(
    name="CompactTiles",
    doc="",
    fields=(
        Field("tiles", "void*"),
        Field("moves", "const int32_t*", "[count, 4]"),
        Field("marks", "float*", "[tile_count, channels, TILE_TOKENS], or null with 0 channels"),
        *fields("int64_t", "count", "tile_count", "head_dim", "value_dim", "channels", "kv_bits"),
    ),
)
