"""Ports and attributes that the attention ops have in common."""

from __future__ import annotations

from enginewright.plugins.ops.call import Field, Structure, fields
from enginewright.plugins.ops.op import Attribute, Tensor

QUERY_STARTS = Tensor(
    "query_starts", ("int32",), ("B1",), "row b has the new tokens query_starts[b] .. query_starts[b + 1] - 1"
)
KV_LENS = Tensor(
    "kv_lens",
    ("int32",),
    ("L", "B", "H"),
    "number of tokens in the cache before this call, for each layer, row and KV head; a layer that has fewer than H heads "
    "reads the first ones",
)
SINKS = Tensor(
    "sinks",
    ("float32",),
    ("Hq",),
    "an extra logit of each head; takes a share of the softmax, adds no value",
    optional=True,
)
SCALE = Attribute("scale", "float", "factor of the product query . key")
WINDOW = Attribute(
    "window",
    "int",
    "number of tokens that a token sees: itself and those just before it; 0: all",
    default=0,
    most=2**31,
)
SOFTCAP = Attribute(
    "softcap", "float", "logits become softcap * tanh(logits / softcap); 0: they stay as they are", default=0.0
)

ATTENTION_FIELDS = Structure(
    name="Attention",
    doc=(
        "The arguments that both attention ops have. kv_lens and table point at the node's layer; query, key, value and "
        "output are of `type`."
    ),
    fields=(
        *fields("const void*", "query", "key", "value"),
        Field("output", "void*"),
        *fields("const int32_t*", "query_starts", "kv_lens", "table"),
        Field("sinks", "const float*", "or null"),
        *fields(
            "int64_t",
            "tokens",
            "rows",
            "query_heads",
            "kv_heads",
            "head_dim",
            "value_dim",
            "table_heads",
            "table_width",
            "window",
        ),
        Field("longest", "int64_t", "no row brings more new tokens; `tokens` where the host does not know better"),
        *fields("float", "scale", "softcap"),
        *fields("int32_t", "type", "reserved"),
    ),
)
