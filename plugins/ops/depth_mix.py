"""Declares DepthMix, the op that mixes values with those of earlier layers (Depth-Attention)."""

from __future__ import annotations

from enginewright.plugins.ops.attention_ports import SCALE
from enginewright.plugins.ops.call import Call, Field, KernelSizes, fields
from enginewright.plugins.ops.op import FLOATS, Op, Tensor

DEPTH_MIX = Op(
    name="DepthMix",
    version=1,
    doc="Depth-Attention: mixes each token's value with those of earlier layers, by a softmax of query . key over layers.",
    inputs=(
        Tensor(
            "query",
            FLOATS,
            ("T", "Hq", "D"),
            "the layer's query, as attention reads it; the heads of a group are averaged",
        ),
        Tensor("key", FLOATS, ("T", "Hkv", "D"), "the layer's key"),
        Tensor("value", FLOATS, ("T", "Hkv", "Dv"), "the layer's value"),
        Tensor(
            "sources",
            FLOATS,
            ("T", "Hkv", "any"),
            "key and mixed value of each earlier layer that is a source, in layer order: key, value, key, value, ...",
            variadic=True,
        ),
    ),
    outputs=(
        Tensor(
            "mixed", FLOATS, ("T", "Hkv", "Dv"), "the mixed value, which replaces `value` in attention and in the cache"
        ),
    ),
    attributes=(SCALE,),
    oracle="enginewright.plugins.oracles.depth_mix:mix_values",
)

DEPTH_MIX_CALL = Call(
    name="DepthMix",
    doc="sources[2 i] and sources[2 i + 1]: key and mixed value of source i, device pointers in host memory.",
    fields=(
        *fields("const void*", "query", "key", "value"),
        Field("sources", "const void* const*"),
        Field("mixed", "void*"),
        *fields("int64_t", "tokens", "query_heads", "kv_heads", "head_dim", "value_dim", "source_count"),
        Field("scale", "float"),
        Field("type", "int32_t"),
    ),
    sizes=(
        KernelSizes("dim_step", 8, "Head sizes: multiples of it, up to most_dim."),
        KernelSizes("most_dim", 512, "The largest head size."),
        KernelSizes("most_sources", 64, "The most earlier layers."),
    ),
)
