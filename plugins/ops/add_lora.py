"""Declares AddLora, the op that adds each token's own adapter to a product."""

from __future__ import annotations

from enginewright.plugins.ops.call import Call, Field, KernelSizes, fields
from enginewright.plugins.ops.op import FLOATS, Attribute, Op, Tensor

ADD_LORA = Op(
    name="AddLora",
    version=1,
    doc=(
        "Adds to each token of a product W x the product B (A x) of the adapter that the token names. W may be several "
        "weights that were put together; each of these segments has factors of its own."
    ),
    inputs=(
        Tensor("base", FLOATS, ("one", "T", "O"), "W x; the host may let `sum` take its place"),
        Tensor("x", FLOATS, ("one", "T", "N"), "what W was multiplied with"),
        Tensor("index", ("int32",), ("T",), "each token's adapter; 0, or one that is not there: none"),
        Tensor("scale", ("float32",), ("T",), "factor on what the token's adapter adds"),
        Tensor(
            "factors",
            ("float16",),
            ("C", "L", "any", "any"),
            "a [C, L, R, N] and b [C, L, R, Os] of each segment, by adapter and layer: a, b, a, b, ...; b is turned, so that "
            "output o of the segment reads its column o. The segments' outputs are those of `base`, one after another",
            variadic=True,
        ),
    ),
    outputs=(Tensor("sum", FLOATS, ("one", "T", "O"), "base + scale * B (A x); base where the index is 0"),),
    attributes=(Attribute("layer", "int", "the layer, a place on the second axis of the factors"),),
    oracle="enginewright.plugins.oracles.add_lora:add_lora",
)

ADD_LORA_CALL = Call(
    name="AddLora",
    doc=(
        "base and sum [tokens, outputs] and x [tokens, size] of `type`. factors[2 i] and factors[2 i + 1]: a and b of segment i, "
        "halves in device memory, whose pointers lie in host memory; widths[i]: its outputs, in host memory."
    ),
    fields=(
        *fields("const void*", "base", "x"),
        Field("index", "const int32_t*"),
        Field("scale", "const float*"),
        Field("factors", "const void* const*"),
        Field("widths", "const int64_t*"),
        Field("sum", "void*"),
        *fields("int64_t", "tokens", "outputs", "size", "capacity", "layers", "layer", "rank", "segments"),
        Field("type", "int32_t"),
    ),
    sizes=(KernelSizes("most_segments", 8, "The most weights that were put together."),),
)
