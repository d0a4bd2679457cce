"""Drops sums with zero and products with one.

onnxscript's own rules for this take any constant within 1e-8 of zero as zero. So they drop the epsilon of a norm (helium's
is 1e-8), which then divides by zero. This pass compares the constant exactly. Seen with onnxscript 0.7.2.
"""

from __future__ import annotations

import onnx_ir as ir

NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
COMMUTES = {"Add", "Mul"}


class DropNeutralPass(ir.passes.InPlacePass):
    """Replace x + 0, x - 0, x * 1 and x / 1 by x.

    1. The constant has one element, which is exactly the neutral one, and no more axes than x.
    2. 0 + x and 1 * x are replaced, too; 0 - x and 1 / x are not.
    3. A node whose output is a graph output stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = [_drop(node) for node in list(model.graph) if node.op_type in NEUTRAL and node.domain == ""]
        return ir.passes.PassResult(model, modified=any(changed))


def _drop(node: ir.Node) -> bool:
    left, right = node.inputs
    output = node.outputs[0]
    if output.is_graph_output():
        return False
    for kept, constant in ((left, right), (right, left))[: 2 if node.op_type in COMMUTES else 1]:
        if kept is not None and kept.dtype == output.dtype and _is_neutral(kept, constant, NEUTRAL[node.op_type]):
            output.replace_all_uses_with(kept)
            assert node.graph is not None
            node.graph.remove(node, safe=True)
            return True
    return False


def _is_neutral(kept: ir.Value, constant: ir.Value | None, neutral: int) -> bool:
    tensor = None if constant is None else ir.convenience.get_const_tensor(constant)
    if tensor is None or tensor.size != 1 or kept.shape is None or len(tensor.shape) > len(kept.shape):
        return False
    return bool(tensor.numpy().reshape(()) == neutral)
