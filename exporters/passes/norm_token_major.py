"""Moves a norm over head_dim before the transpose to heads first, so that RotateTokenMajorPass can drop that transpose."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter import pattern


def _norm_of_swapped(op, x, scale):  # type: ignore[no-untyped-def]
    swapped = op.Transpose(x, perm=[0, 2, 1, 3])
    return op.RMSNormalization(swapped, scale, _allow_other_attributes=True, _outputs=["normalized"])


def _swapped_norm(op, x, scale, normalized):  # type: ignore[no-untyped-def]
    attributes = {name: value.value for name, value in normalized.producer().attributes.items()}
    result = op.RMSNormalization(x, scale, **attributes)
    result.shape, result.type = x.shape, x.type
    return op.Transpose(result, perm=[0, 2, 1, 3])


def _is_over_last_axis(context, normalized, **_) -> bool:  # type: ignore[no-untyped-def]
    return bool(normalized.producer().attributes.get_int("axis", -1) == -1)


class NormTokenMajorPass(ir.passes.InPlacePass):
    """Replace RMSNormalization(Transpose(x)) over the last axis by Transpose(RMSNormalization(x))."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        count = pattern.RewriteRule(_norm_of_swapped, _swapped_norm, _is_over_last_axis).apply_to_model(model)
        return ir.passes.PassResult(model, modified=bool(count))
