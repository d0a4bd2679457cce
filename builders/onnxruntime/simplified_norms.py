"""Replaces RMS norms by ONNX Runtime's own ops, alone or fused with the residual sum before them."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter.ort_fusions.skip_normalization import fuse_skip_rms_normalization

MICROSOFT = "com.microsoft"


class SimplifiedNormsPass(ir.passes.InPlacePass):
    """RMSNormalization -> SimplifiedLayerNormalization, and with an Add before it -> SkipSimplifiedLayerNormalization.

    1. A norm over the last axis with a scale of one axis changes its name; the attributes are the same.
    2. Any other norm stays a standard RMSNormalization.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        renamed = [_rename(node) for node in list(model.graph) if node.op_type == "RMSNormalization"]
        fused = fuse_skip_rms_normalization(model)
        if fused:
            model.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified=any(renamed) or bool(fused))


def _rename(node: ir.Node) -> bool:
    scale = node.inputs[1]
    last = node.attributes.get_int("axis", -1) == -1
    if not last or scale is None or scale.shape is None or len(scale.shape) != 1:
        return False
    node.op_type = "SimplifiedLayerNormalization"
    return True
