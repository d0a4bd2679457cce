"""onnxscript's own optimisation and fusions to the standard opset's RMSNormalization and RotaryEmbedding."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import optimizer
from onnxscript.rewriter.rules.fusion import _rms_normalization, _rotary_embedding


class FuseStandardOpsPass(ir.passes.InPlacePass):
    """Fold constants, merge equal computations, and fuse norms and rotary embeddings into single nodes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        optimizer.optimize_ir(model)
        _rms_normalization.fuse_rms_normalization(model)
        _rotary_embedding.fuse_rotary_embedding(model)
        optimizer.optimize_ir(model)
        return ir.passes.PassResult(model, modified=True)
