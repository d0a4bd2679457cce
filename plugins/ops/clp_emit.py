"""ClpEmit: the tokens after the next one, guessed by extra heads."""

from __future__ import annotations

from enginewright.plugins.ops.op import FLOATS, Attribute, Op, Tensor

CLP_EMIT = Op(
    name="ClpEmit",
    version=1,
    doc="Tokens behind the next one: a classifier says how many, and only that many of each row's heads are evaluated.",
    inputs=(
        Tensor("hidden", FLOATS, ("N", "d"), "states of the sampled tokens, as the output projection reads them"),
        Tensor("greedy", ("int64",), ("N",), "the model's own next tokens; behind a negative one nothing is emitted"),
        Tensor("classifier_weight", ("float32",), ("classes", "d"), "class L: L heads are right"),
        Tensor("classifier_bias", ("float32",), ("classes",), ""),
        Tensor(
            "up_weight", FLOATS, ("extra", "h", "d"), "of each head's hidden layer; head j = 1 .. is about token j + 1"
        ),
        Tensor("up_bias", FLOATS, ("extra", "h"), ""),
        Tensor("out_bias", FLOATS, ("extra", "V"), ""),
        Tensor("out_weight", FLOATS, ("extra", "V", "h"), "of each head's logits; or out_codes", optional=True),
        Tensor(
            "out_codes", ("int8",), ("extra", "V", "h"), "the same in 8 bits: code * scale of the row", optional=True
        ),
        Tensor("out_scales", ("float32",), ("extra", "V"), "given if and only if out_codes is", optional=True),
        Tensor("sample_rows", ("int64",), ("N",), "given: only a row's last token emits", optional=True),
        Tensor("query_starts", ("int32",), ("B1",), "given if and only if sample_rows is", optional=True),
    ),
    outputs=(
        Tensor("tokens", ("int64",), ("N", "k"), "greedy, then the heads' tokens, lowest id among equals; then -1"),
        Tensor(
            "counts", ("int64",), ("N",), "1 + L: how many of a row's tokens are emitted; a head not finite ends it"
        ),
    ),
    attributes=(
        Attribute("k", "int", "tokens of one emission: 1 + the number of heads"),
        Attribute("tau", "float", "L is 0 where the likeliest class is less likely than this"),
        Attribute("activation", "int", "of the hidden layer: 0: GELU (erf), 1: SiLU", default=0),
        Attribute("residual", "int", "1: the state is added behind the activation (h = d)", default=0),
    ),
    oracle="enginewright.plugins.oracles.clp_emit:clp_emit",
)
