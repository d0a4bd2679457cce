"""Declares GreedySample, the op that chooses the most probable token of each row."""

from __future__ import annotations

from enginewright.plugins.ops.call import Call, Field, fields
from enginewright.plugins.ops.op import FLOATS, Op, Tensor

GREEDY_SAMPLE = Op(
    name="GreedySample",
    version=1,
    doc=(
        "Chooses the most probable token of each row. It runs on the device that has the logits, so a host that decodes "
        "greedily need not read them."
    ),
    inputs=(Tensor("logits", FLOATS, ("N", "V"), "logits of the sampled tokens"),),
    outputs=(
        Tensor(
            "tokens",
            ("int64",),
            ("N",),
            "index of each row's largest logit, the lowest among equals; -1 if that logit is not finite or one is NaN",
        ),
    ),
    attributes=(),
    oracle="enginewright.plugins.oracles.greedy_sample:greedy_sample",
)

GREEDY_SAMPLE_CALL = Call(
    name="GreedySample",
    doc="",
    fields=(
        Field("logits", "const float*"),
        Field("tokens", "int64_t*"),
        *fields("int64_t", "rows", "vocab"),
    ),
)
