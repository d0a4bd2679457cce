"""Declares GreedyLinear, the output projection with the choice of each row's most probable token."""

from __future__ import annotations

from enginewright.plugins.ops.block_linear import CODE_ATTRIBUTES, PANELS, unsupported
from enginewright.plugins.ops.op import Attribute, Op, Tensor

GREEDY_LINEAR = Op(
    name="GreedyLinear",
    version=1,
    doc=(
        "Multiplies rows as BlockLinear does, and chooses among the results of each as GreedySample does. Results that nobody "
        "reads are not written: a row of logits is often a hundred times as large as its token's activations."
    ),
    inputs=(
        Tensor("x", ("float32",), ("one", "N", "columns"), "rows of activations"),
        PANELS,
        Tensor("wanted", ("int64",), ("one",), "0: `logits` are not written, and hold what was there before"),
        Tensor("bias", ("float32",), ("rows",), "added to each row of the product", optional=True),
        Tensor("norm", ("float32",), ("columns",), "scale of an RMS norm of x, as BlockLinear has it", optional=True),
    ),
    outputs=(
        Tensor("logits", ("float32",), ("N", "rows"), "x W^T"),
        Tensor(
            "tokens",
            ("int64",),
            ("N",),
            "index of each row's largest logit, the lowest among equals; -1 if that logit is not finite or one is NaN",
        ),
    ),
    attributes=(
        *CODE_ATTRIBUTES,
        Attribute("exact", "int", "1: activations stay numbers", default=0, most=1),
        Attribute("epsilon", "float", "added to the mean square of a row, where there is a norm", default=1e-6),
    ),
    oracle="enginewright.plugins.oracles.block_linear:greedy_linear",
    unsupported=unsupported,
)
