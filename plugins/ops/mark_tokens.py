"""Declares MarkTokens, the op that keeps numbers of each stored token: the attention that it was given, or what a gate said."""

from __future__ import annotations

from enginewright.plugins.ops.attention_ports import KV_LENS, QUERY_STARTS, SCALE, SINKS, SOFTCAP
from enginewright.plugins.ops.call import Call, Field, fields
from enginewright.plugins.ops.op import FLOATS, Attribute, Op, Tensor

MARK_TOKENS = Op(
    name="MarkTokens",
    version=1,
    doc=(
        "Updates the marks of stored tokens by the attention of the new queries, one query of a row after another, or marks new "
        "tokens by given values. A decoder graph has it after the attention of a layer, so the new tokens are in the cache "
        "already. A mark belongs to a place of a tile; so rows whose marks come from queries do not share tiles."
    ),
    inputs=(
        Tensor("query", FLOATS, ("T", "Hq", "D"), "queries of the new tokens, as attention has them"),
        Tensor("tiles", ("int8",), ("N", "bytes"), "the layer's pool of tiles with the new tokens"),
        QUERY_STARTS,
        KV_LENS,
        Tensor("tile_table", ("int32",), ("L", "B", "H", "M"), "ids of the tiles in token order"),
        Tensor("position_ids", ("int64",), ("T",), "position of each new token"),
        Tensor(
            "marks",
            ("float32",),
            ("N", "C", "places"),
            "C numbers of each of a tile's 128 places. kind 0: C = 1, the sum of probabilities. kind 1: C = 2, the position of "
            "the last query that hit the token, and the longest time between two hits. kind 2: C = 1, the token's own value",
        ),
        SINKS,
        Tensor(
            "values",
            ("float32",),
            ("T", "kv_heads"),
            "with kind 2 alone: what each new token is marked with in each KV head",
            optional=True,
        ),
    ),
    outputs=(Tensor("marks_out", ("float32",), ("N", "C", "places"), "`marks` after the new queries", alias="marks"),),
    attributes=(
        Attribute("layer", "int", "index of the node's layer in kv_lens and tile_table"),
        Attribute("kv_heads", "int", "number of the layer's KV heads", least=1),
        SCALE,
        SOFTCAP,
        Attribute(
            "kind",
            "int",
            "0, mass: a token begins with 0 and adds the mean probability of its query heads. 1, recurrence: it begins with its "
            "own position and 0; a query at t hits it where the largest probability is `alpha` or more, and then the interval "
            "becomes max(interval, t - last hit), and the last hit t. 2, given: a token keeps its own of `values`, and queries "
            "change nothing",
            most=2,
        ),
        Attribute("alpha", "float", "the least probability that counts as a hit; kind 1 alone reads it", default=1e-4),
        Attribute("kv_bits", "int", "bits of a stored element: 16 (IEEE half) or 32 (float32)", default=16),
    ),
    oracle="enginewright.plugins.oracles.mark_tokens:mark_tokens",
)

MARK_TOKENS_CALL = Call(
    name="MarkTokens",
    doc="query is of `type`; kv_lens and table point at the node's layer.",
    fields=(
        *fields("const void*", "query", "tiles"),
        *fields("const int32_t*", "query_starts", "kv_lens", "table"),
        Field("position_ids", "const int64_t*"),
        Field("sinks", "const float*", "or null"),
        Field("values", "const float*", "[tokens, kv_heads] with kind 2, or null"),
        Field("marks", "float*", "[tile_count, channels, TILE_TOKENS]"),
        *fields(
            "int64_t",
            "tokens",
            "rows",
            "query_heads",
            "kv_heads",
            "head_dim",
            "tile_count",
            "tile_bytes",
            "table_heads",
            "table_width",
            "channels",
            "kv_bits",
        ),
        *fields("float", "scale", "softcap", "alpha"),
        *fields("int32_t", "kind", "type"),
    ),
)
