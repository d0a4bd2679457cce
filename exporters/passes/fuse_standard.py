"""Fuses nodes into the standard opset's RMSNormalization and RotaryEmbedding, by onnxscript's rules."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter.rules.fusion._rms_normalization import fuse_rms_normalization
from onnxscript.rewriter.rules.fusion._rotary_embedding import fuse_rotary_embedding


class FuseStandardOpsPass(ir.passes.InPlacePass):
    """Fuse norms and rotary embeddings, which torch writes as many nodes, into single nodes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        fuse_rms_normalization(model)
        fuse_rotary_embedding(model)
        return ir.passes.PassResult(model, modified=True)
