"""GreedySample: the most probable token of each row."""

from __future__ import annotations

from enginewright.plugins.ops.op import FLOATS, Op, Tensor

GREEDY_SAMPLE = Op(
    name="GreedySample",
    version=1,
    doc="The most probable token of each row, where the logits are: a host that decodes greedily need not read them.",
    inputs=(Tensor("logits", FLOATS, ("N", "V"), "of the sampled tokens"),),
    outputs=(
        Tensor("tokens", ("int64",), ("N",), "index of the largest logit, the lowest among equals; -1: not finite"),
    ),
    attributes=(),
    oracle="enginewright.plugins.oracles.greedy_sample:greedy_sample",
)
