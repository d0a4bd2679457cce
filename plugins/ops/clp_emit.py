"""Declares ClpEmit, the op that guesses the tokens after the next one by extra heads (CLP)."""

from __future__ import annotations

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
        Attribute("k", "int", "most tokens of one emission: 1 + the number of heads"),
        Attribute("tau", "float", "L is 0 if the most likely class has a probability below this"),
        Attribute("activation", "int", "activation of the hidden layer; 0: GELU (erf), 1: SiLU", default=0),
        Attribute(
            "residual", "int", "1: the state is added after the activation (then h = d); 0: it is not", default=0
        ),
    ),
    oracle="enginewright.plugins.oracles.clp_emit:clp_emit",
)
