"""Declares ClpEmit, the op that guesses the tokens after the next one by extra heads (CLP)."""

from __future__ import annotations

from enginewright.plugins.ops.call import Call, Field, KernelSizes, fields
from enginewright.plugins.ops.op import FLOATS, Attribute, Op, Tensor

CLP_EMIT = Op(
    name="ClpEmit",
    version=1,
    doc=(
        "Guesses the tokens after the next one. A classifier decides how many tokens each row emits, and only as many of its "
        "extra heads are evaluated."
    ),
    inputs=(
        Tensor("hidden", FLOATS, ("N", "d"), "states of the sampled tokens, which the output projection reads, too"),
        Tensor(
            "greedy", ("int64",), ("N",), "the model's own next tokens; after a negative one nothing more is emitted"
        ),
        Tensor(
            "classifier_weight",
            ("float32",),
            ("classes", "d"),
            "weight of the classifier; class L means that the first L heads are right",
        ),
        Tensor("classifier_bias", ("float32",), ("classes",), "bias of the classifier"),
        Tensor(
            "up_weight",
            FLOATS,
            ("extra", "h", "d"),
            "weight of each head's hidden layer; head j = 1, 2, ... predicts the token j + 1 positions after the one whose state it reads",
        ),
        Tensor("up_bias", FLOATS, ("extra", "h"), "bias of each head's hidden layer"),
        Tensor("out_bias", FLOATS, ("extra", "V"), "bias of each head's logits"),
        Tensor(
            "out_weight",
            FLOATS,
            ("extra", "V", "h"),
            "weight of each head's logits; given if and only if out_codes is not",
            optional=True,
        ),
        Tensor(
            "out_codes",
            ("int8",),
            ("extra", "V", "h"),
            "weight of each head's logits in 8 bits; an element is its code times the scale of its row",
            optional=True,
        ),
        Tensor(
            "out_scales",
            ("float32",),
            ("extra", "V"),
            "scale of each row of out_codes; given if and only if out_codes is",
            optional=True,
        ),
        Tensor(
            "sample_rows",
            ("int64",),
            ("N",),
            "index of each sampled token among the new ones; if given, only the last new token of a row emits more tokens",
            optional=True,
        ),
        Tensor(
            "query_starts",
            ("int32",),
            ("B1",),
            "row b has the new tokens query_starts[b] .. query_starts[b + 1] - 1; given if and only if sample_rows is",
            optional=True,
        ),
    ),
    outputs=(
        Tensor(
            "tokens",
            ("int64",),
            ("N", "k"),
            "the token of `greedy`, then those of the heads (the lowest id among equal logits), then -1 to the end",
        ),
        Tensor(
            "counts",
            ("int64",),
            ("N",),
            "1 + L: the number of tokens that each row emits; a head whose best logit is not finite ends the emission",
        ),
    ),
    attributes=(
        Attribute("k", "int", "most tokens of one emission: 1 + the number of heads", least=2, most=16),
        Attribute("tau", "float", "L is 0 if the most likely class has a probability below this"),
        Attribute("activation", "int", "activation of the hidden layer; 0: GELU (erf), 1: SiLU", default=0, most=1),
        Attribute(
            "residual",
            "int",
            "1: the state is added after the activation (then h = d); 0: it is not",
            default=0,
            most=1,
        ),
    ),
    oracle="enginewright.plugins.oracles.clp_emit:clp_emit",
)

CLP_EMIT_CALL = Call(
    name="ClpEmit",
    doc="Weights of the heads' hidden layer and of out_weight are of `type`; the biases up_bias and out_bias too.",
    fields=(
        Field("hidden", "const void*"),
        Field("greedy", "const int64_t*"),
        *fields("const float*", "classifier_weight", "classifier_bias"),
        *fields("const void*", "up_weight", "up_bias", "out_bias"),
        Field("out_weight", "const void*", "or null: out_codes and out_scales"),
        Field("out_codes", "const int8_t*"),
        Field("out_scales", "const float*"),
        Field("sample_rows", "const int64_t*", "or null"),
        Field("query_starts", "const int32_t*", "given with sample_rows: [sequences + 1]"),
        *fields("int64_t*", "tokens", "counts"),
        *fields("int64_t", "rows", "size", "classes", "extra", "inner", "vocab", "sequences"),
        Field("tau", "float"),
        *fields("int32_t", "activation", "residual", "type"),
    ),
    sizes=(
        KernelSizes("most_rows", 1024, "The most rows of a call."),
        KernelSizes("most_classes", 256, "The most classes."),
        KernelSizes("most_extra", 15, "The most heads; states, hidden layers and vocabularies may have any size."),
    ),
)
