"""SplitQkv: a packed projection as normalised, rotated heads."""

from __future__ import annotations

from enginewright.plugins.ops.op import FLOATS, Attribute, Op, Tensor

SPLIT_QKV = Op(
    name="SplitQkv",
    version=1,
    doc="Splits a packed projection into heads; on the way normalises (RMS over a head) and rotates query and key.",
    inputs=(
        Tensor("packed", FLOATS, ("one", "T", "P"), "query, key and value heads of each token, in this order"),
        Tensor("cos", FLOATS, ("one", "T", "R"), "of each token's angles; 2 R dimensions are rotated", optional=True),
        Tensor("sin", FLOATS, ("one", "T", "R"), "given if and only if cos is", optional=True),
        Tensor("query_norm", FLOATS, ("head_dim",), "scale of the query heads' RMS norm", optional=True),
        Tensor("key_norm", FLOATS, ("head_dim",), "given if and only if query_norm is", optional=True),
    ),
    outputs=(
        Tensor("query", FLOATS, ("T", "query_heads", "head_dim"), "normalised, then rotated"),
        Tensor("key", FLOATS, ("T", "kv_heads", "head_dim"), "normalised, then rotated"),
        Tensor("value", FLOATS, ("T", "kv_heads", "value_dim"), "as it was"),
    ),
    attributes=(
        Attribute("query_heads", "int", "heads of the query"),
        Attribute("kv_heads", "int", "heads of key and value"),
        Attribute("head_dim", "int", "of query and key; dimension i < R turns with dimension i + R"),
        Attribute("value_dim", "int", "of the value"),
        Attribute("epsilon", "float", "added to the mean square of a head", default=1e-6),
    ),
    oracle="enginewright.plugins.oracles.split_qkv:split_qkv",
)
