"""Simplifies a graph by the general rules of onnxscript and onnx-ir, without two kinds of rules.

`onnxscript.optimizer.optimize` would do the same. But its `slice_split_rule` tries every pair of Slices in a graph, which
takes two thirds of the time of an export, and its rules for neutral constants are not exact (`drop_neutral.py`). Checked with
onnxscript 0.7.2.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import RewritePass, pattern
from onnxscript.rewriter.rules import common as rules

from enginewright.exporters.passes.drop_neutral import DropNeutralPass


def _unsqueezed(op, x, axes, shape):  # type: ignore[no-untyped-def]
    return op.Reshape(op.Unsqueeze(x, axes), shape, _allow_other_attributes=True)


def _reshaped(op, x, shape, **_):  # type: ignore[no-untyped-def]
    return op.Reshape(x, shape)


def _has_no_zero(context, shape, **_) -> bool:  # type: ignore[no-untyped-def]
    """Whether the new shape copies no size of the old one."""
    sizes = ir.convenience.get_const_tensor(shape)
    return sizes is not None and 0 not in sizes.numpy()


RULES = [
    pattern.RewriteRule(_unsqueezed, _reshaped, _has_no_zero),
    rules.no_op_static_scatter_nd_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.flatten_to_reshape_rule,
    rules.reshape_reshape_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
]


class SimplifyPass(ir.passes.InPlacePass):
    """Fold constants, rewrite by RULES, and merge equal computations, `rounds` times or until nothing changes."""

    def __init__(self, rounds: int = 2) -> None:
        self._rounds = rounds

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        ir.passes.Sequential(
            common.InlinePass(),
            ir.passes.PassManager(
                [_FoldPass(), DropNeutralPass(), RewritePass(RULES), common.RemoveUnusedNodesPass()],
                steps=self._rounds,
                early_stop=True,
            ),
            common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
            common.RemoveUnusedOpsetsPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.DeduplicateInitializersPass(),
            common.CommonSubexpressionEliminationPass(),
            common.NameFixPass(),
        )(model)
        return ir.passes.PassResult(model, modified=True)


class _FoldPass(ir.passes.InPlacePass):
    """onnxscript's constant folding, with shape inference node by node."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = fold_constants(model, onnx_shape_inference=True).modified
        return ir.passes.PassResult(model, modified=modified)
