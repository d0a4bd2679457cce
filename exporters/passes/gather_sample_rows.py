"""Reads the sampled rows with one Gather.

torch writes `hidden[:, rows]` as a transpose of all hidden states, a GatherND and a transpose back. So every token's states
would be copied to read a few rows.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter import pattern


def _indexed(op, hidden, rows, axes):  # type: ignore[no-untyped-def]
    swapped = op.Transpose(hidden, perm=[1, 0, 2])
    return op.Transpose(op.GatherND(swapped, op.Unsqueeze(rows, axes), batch_dims=0), perm=[1, 0, 2])


def _gathered(op, hidden, rows, axes):  # type: ignore[no-untyped-def]
    return op.Gather(hidden, rows, axis=1)


class GatherSampleRowsPass(ir.passes.InPlacePass):
    """Replace Transpose(GatherND(Transpose(hidden), Unsqueeze(rows))) by Gather(hidden, rows, axis=1)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        count = pattern.RewriteRule(_indexed, _gathered).apply_to_model(model)
        return ir.passes.PassResult(model, modified=bool(count))
