"""Declares TokenScores, the op that says how much attention each stored token gets, and how similar keys are."""

from __future__ import annotations

from enginewright.plugins.ops.attention_ports import SCALE, SINKS, SOFTCAP
from enginewright.plugins.ops.call import Call, Field, fields
from enginewright.plugins.ops.op import FLOATS, Attribute, Op, Tensor

TOKEN_SCORES = Op(
    name="TokenScores",
    version=1,
    doc=(
        "Scores the stored tokens of one layer for a cache policy. The importance of a token is the attention that the newest "
        "queries of its row, the window, give it. Its redundancy says how similar its key is to those of the row's others. "
        "What does not exist, and where a head holds no more tokens than the window has, scores are 0. Keys may lie in a cache "
        "of records, as KVarNAttention has it: then they are decoded and turned back in float32 before anything else."
    ),
    inputs=(
        Tensor("ring", FLOATS, ("S", "Hq", "R", "D"), "the layer's newest queries, which HoldQueries keeps"),
        Tensor(
            "tiles",
            ("int8",),
            ("N", "bytes"),
            "the layer's pool of tiles, as PagedAttention has it; with `k_bits` that of records, as KVarNAttention has it",
        ),
        Tensor("slots", ("int32",), ("B",), "index of each row in `ring` and in `exact`"),
        Tensor(
            "kv_lens",
            ("int32",),
            ("L", "B", "H"),
            "number n of tokens in the cache, for each layer, row and KV head; the newest `window` of them are the window",
        ),
        Tensor("tile_table", ("int32",), ("L", "B", "H", "M"), "ids of the tiles in token order"),
        Tensor("last_positions", ("int64",), ("B",), "position of each row's newest token, the last of the window"),
        SINKS,
        Tensor(
            "exact",
            ("float16",),
            ("S", "kv_heads", "F", "E"),
            "the exact tiles of a cache of records; there if and only if k_bits is not 0",
            optional=True,
        ),
        Tensor(
            "encoded_lens",
            ("int32",),
            ("two", "L", "B", "H"),
            "with `exact`: as KVarNAttention has them; the first of the two says what is encoded now",
            optional=True,
        ),
    ),
    outputs=(
        Tensor("importance", ("float32",), ("B", "kv_heads", "M*128"), "attention of the window to each token"),
        Tensor(
            "redundancy",
            ("float32",),
            ("B", "kv_heads", "M*128*redundancy"),
            "softmax, over the n tokens of a head, of the mean cosine with the head's other keys. Of each key's cosines the one "
            "with the latest key above `threshold` does not count; where there is none, the one with key 0 does not",
        ),
    ),
    attributes=(
        Attribute("layer", "int", "index of the node's layer in kv_lens and tile_table"),
        Attribute("kv_heads", "int", "number of the layer's KV heads", least=1),
        SCALE,
        Attribute("window", "int", "number of queries that score, at most R", least=1),
        SOFTCAP,
        Attribute(
            "scope",
            "int",
            "0: each query's softmax is over the n - window tokens before the window; importance is the mean over the queries. "
            "1: it is over all tokens up to the query's own; importance is the sum",
            default=0,
            most=1,
        ),
        Attribute(
            "group",
            "int",
            "how the query heads of a KV head become one. 0: the largest logit, before the softmax; 1: the mean probability; "
            "2: the largest probability",
            default=0,
            most=2,
        ),
        Attribute("redundancy", "int", "1: the second output has its values; 0: it is empty", default=0, most=1),
        Attribute("threshold", "float", "cosine above which two keys say the same", default=0.5),
        Attribute("kv_bits", "int", "bits of a stored element: 16 (IEEE half) or 32 (float32)", default=16),
        Attribute(
            "k_bits", "int", "bits of a key's code in a record: 2, 4 or 8; 0: no tile is a record", default=0, most=8
        ),
        Attribute(
            "v_bits", "int", "those of a value's, for the size of a record; 0 where k_bits is", default=0, most=8
        ),
    ),
    oracle="enginewright.plugins.oracles.token_scores:token_scores",
)

TOKEN_SCORES_CALL = Call(
    name="TokenScores",
    doc="ring is of `type`; kv_lens, table and encoded point at the node's layer.",
    fields=(
        *fields("const void*", "ring", "tiles"),
        *fields("const int32_t*", "slots", "kv_lens", "table"),
        Field("last_positions", "const int64_t*"),
        Field("sinks", "const float*", "or null"),
        Field(
            "exact", "const void*", "[slot_count, kv_heads, exact_tiles, 2 * TILE_TOKENS * head_dim] halves, or null"
        ),
        Field("encoded", "const int32_t*", "[rows, table_heads], or null"),
        Field("importance", "float*", "[rows, kv_heads, table_width * TILE_TOKENS]"),
        Field("redundancy", "float*", "the same, or null"),
        *fields(
            "int64_t",
            "rows",
            "query_heads",
            "kv_heads",
            "head_dim",
            "slot_count",
            "entries",
            "tile_count",
            "tile_bytes",
            "table_heads",
            "table_width",
            "window",
            "kv_bits",
            "exact_tiles",
            "k_bits",
            "v_bits",
        ),
        *fields("float", "scale", "softcap", "threshold"),
        *fields("int32_t", "scope", "group", "type"),
    ),
)
