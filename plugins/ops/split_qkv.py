"""Declares SplitQkv, the op that splits a packed projection into normalised, rotated heads."""

from __future__ import annotations

from enginewright.plugins.ops.call import Call, Field, fields
from enginewright.plugins.ops.op import FLOATS, Attribute, Op, Tensor

SPLIT_QKV = Op(
    name="SplitQkv",
    version=1,
    doc="Splits a packed projection into heads. Query and key are normalised (RMS over a head) and rotated on the way.",
    inputs=(
        Tensor("packed", FLOATS, ("one", "T", "P"), "the query, key and value heads of each token, in this order"),
        Tensor(
            "cos",
            FLOATS,
            ("one", "T", "R"),
            "cosines of each token's angles; the first 2 R dimensions of a head are rotated",
            optional=True,
        ),
        Tensor(
            "sin",
            FLOATS,
            ("one", "T", "R"),
            "sines of each token's angles; given if and only if cos is",
            optional=True,
        ),
        Tensor("query_norm", FLOATS, ("head_dim",), "scale of the query heads' RMS norm", optional=True),
        Tensor(
            "key_norm",
            FLOATS,
            ("head_dim",),
            "scale of the key heads' RMS norm; given if and only if query_norm is",
            optional=True,
        ),
    ),
    outputs=(
        Tensor("query", FLOATS, ("T", "query_heads", "head_dim"), "the query heads, normalised, then rotated"),
        Tensor("key", FLOATS, ("T", "kv_heads", "head_dim"), "the key heads, normalised, then rotated"),
        Tensor("value", FLOATS, ("T", "kv_heads", "value_dim"), "the value heads, unchanged"),
    ),
    attributes=(
        Attribute("query_heads", "int", "number of query heads", least=1),
        Attribute("kv_heads", "int", "number of key heads, and of value heads", least=1),
        Attribute(
            "head_dim", "int", "size of a query or key head; dimension i < R is rotated with dimension i + R", least=1
        ),
        Attribute("value_dim", "int", "size of a value head", least=1),
        Attribute("epsilon", "float", "number added to the mean square of a head", default=1e-6),
    ),
    oracle="enginewright.plugins.oracles.split_qkv:split_qkv",
)

SPLIT_QKV_CALL = Call(
    name="SplitQkv",
    doc=(
        "packed [tokens, (query_heads + kv_heads) head_dim + kv_heads value_dim]; cos, sin [tokens, half], null with half "
        "0; norms [head_dim], both or neither."
    ),
    fields=(
        *fields("const void*", "packed", "cos", "sin", "query_norm", "key_norm"),
        *fields("void*", "query", "key", "value"),
        *fields("int64_t", "tokens", "query_heads", "kv_heads", "head_dim", "value_dim", "half"),
        Field("epsilon", "float"),
        Field("type", "int32_t"),
    ),
)
