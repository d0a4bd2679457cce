"""Declares HoldQueries, the op that keeps the newest queries of each request for the scores of its cache policy."""

from __future__ import annotations

from enginewright.plugins.ops.attention_ports import QUERY_STARTS
from enginewright.plugins.ops.call import Call, Field, fields
from enginewright.plugins.ops.op import FLOATS, Op, Tensor

HOLD_QUERIES = Op(
    name="HoldQueries",
    version=1,
    doc=(
        "Keeps the newest queries of each request in a ring: that of position p at entry p mod R. A decoder graph has it "
        "after the attention of a layer; TokenScores reads the ring between steps. R is at least the window of the scores "
        "and the most tokens of a step that may be taken back, less one; then nothing that is needed is overwritten."
    ),
    inputs=(
        Tensor("query", FLOATS, ("T", "Hq", "D"), "queries of the new tokens, as attention has them"),
        Tensor("ring", FLOATS, ("S", "Hq", "R", "D"), "the layer's queries, a ring in each slot"),
        QUERY_STARTS,
        Tensor("slots", ("int32",), ("B",), "index of each row in `ring`; rows with new tokens have different ones"),
        Tensor("position_ids", ("int64",), ("T",), "position of each new token; those of a row follow one another"),
    ),
    outputs=(
        Tensor(
            "ring_out",
            FLOATS,
            ("S", "Hq", "R", "D"),
            "`ring` with the last R new queries of each row written to it",
            alias="ring",
        ),
    ),
    attributes=(),
    oracle="enginewright.plugins.oracles.hold_queries:hold_queries",
)

HOLD_QUERIES_CALL = Call(
    name="HoldQueries",
    doc="query [tokens, heads, dim] and ring [slot_count, heads, entries, dim] are of `type`.",
    fields=(
        Field("query", "const void*"),
        Field("ring", "void*"),
        *fields("const int32_t*", "query_starts", "slots"),
        Field("position_ids", "const int64_t*"),
        *fields("int64_t", "tokens", "rows", "heads", "dim", "slot_count", "entries"),
        Field("type", "int32_t"),
    ),
)
