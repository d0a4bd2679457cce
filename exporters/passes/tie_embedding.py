"""Lets a tied output projection read the embedding matrix as it is stored, so that the engine stores it once."""

from __future__ import annotations

import onnx_ir as ir

from enginewright.exporters.weights.graph_weights import weight_of


class TieEmbeddingPass(ir.passes.InPlacePass):
    """Replace MatMul(x, Transpose(W)) by Gemm(Squeeze(x), W, transB=1) where a Gather reads W, too.

    It runs before FoldWeightsPass, which would store a copy of the transposed matrix.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = [_tie(model.graph, node) for node in list(model.graph) if node.op_type == "MatMul"]
        return ir.passes.PassResult(model, modified=any(changed))


def _tie(graph: ir.Graph, node: ir.Node) -> bool:
    hidden, transposed = node.inputs
    transpose = transposed.producer() if transposed is not None else None
    if hidden is None or transpose is None or transpose.op_type != "Transpose":
        return False
    matrix = transpose.inputs[0]
    if matrix is None or weight_of(matrix) is None or not any(user.op_type == "Gather" for user, _ in matrix.uses()):
        return False
    if hidden.shape is None or len(hidden.shape) != 3 or hidden.shape[0] != 1:
        return False
    axis = ir.node("Constant", [], attributes={"value": ir.tensor([0])})
    rows = ir.node("Squeeze", [hidden, axis.outputs[0]])
    rows.outputs[0].type, rows.outputs[0].shape = hidden.type, ir.Shape(hidden.shape[1:])
    product = ir.node("Gemm", [rows.outputs[0], matrix], attributes={"transB": 1})
    old = node.outputs[0]
    restored = ir.node("Unsqueeze", [product.outputs[0], axis.outputs[0]])
    product.outputs[0].type = restored.outputs[0].type = old.type
    if old.shape is not None:
        product.outputs[0].shape, restored.outputs[0].shape = ir.Shape(old.shape[1:]), old.shape
    graph.insert_before(node, [axis, rows, product, restored])
    old.replace_all_uses_with(restored.outputs[0])
    graph.remove(node, safe=True)
    return True
