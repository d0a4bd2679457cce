"""DepthMix: values mixed with those of earlier layers (Depth-Attention)."""

from __future__ import annotations

from enginewright.plugins.ops.attention_ports import SCALE
from enginewright.plugins.ops.op import FLOATS, Op, Tensor

DEPTH_MIX = Op(
    name="DepthMix",
    version=1,
    doc="Depth-Attention: mixes each token's value with those of earlier layers, by a softmax of query . key over layers.",
    inputs=(
        Tensor("query", FLOATS, ("T", "Hq", "D"), "as attention reads it; the heads of a group are averaged"),
        Tensor("key", FLOATS, ("T", "Hkv", "D"), "the layer's own"),
        Tensor("value", FLOATS, ("T", "Hkv", "Dv"), "the layer's own"),
        Tensor(
            "sources", FLOATS, ("T", "Hkv", "any"), "key, mixed value of each source, in layer order", variadic=True
        ),
    ),
    outputs=(Tensor("mixed", FLOATS, ("T", "Hkv", "Dv"), "takes the value's place in attention and in the cache"),),
    attributes=(SCALE,),
    oracle="enginewright.plugins.oracles.depth_mix:mix_values",
)
