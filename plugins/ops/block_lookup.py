"""Declares BlockLookup, the op that reads rows of a matrix that BlockLinear multiplies by: embeddings from the codes of a head."""

from __future__ import annotations

from enginewright.plugins.ops.block_linear import CODE_ATTRIBUTES, PANELS, unsupported
from enginewright.plugins.ops.op import Op, Tensor

BLOCK_LOOKUP = Op(
    name="BlockLookup",
    version=1,
    doc="Restores rows of a matrix W [rows, columns] of codes or of bfloat16, which BlockLinear describes.",
    inputs=(
        PANELS,
        Tensor("ids", ("int64",), ("one", "T"), "numbers of rows, each at least 0 and less than `rows`"),
    ),
    outputs=(Tensor("out", ("float32",), ("one", "T", "columns"), "W[ids]"),),
    attributes=CODE_ATTRIBUTES,
    oracle="enginewright.plugins.oracles.block_linear:block_lookup",
    unsupported=unsupported,
)
