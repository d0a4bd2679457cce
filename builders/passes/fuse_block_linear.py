"""Fuses what stands around products with weights in panels into BlockLinear: norms, gates, residual sums and reshapes.

A layer of a Llama-like model then has six nodes, and norms, gates and sums read and write no rows of their own.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from enginewright.builders.passes.gates import find_gate
from enginewright.plugins.ops.block_linear import BLOCK_LINEAR, GATES, PANEL_ROWS
from enginewright.plugins.ops.op import DOMAIN

RESHAPES = ("Reshape", "Squeeze", "Unsqueeze")
RESIDUAL, NORM = (next(i for i, t in enumerate(BLOCK_LINEAR.inputs) if t.name == name) for name in ("residual", "norm"))


class FuseBlockLinearPass(ir.passes.InPlacePass):
    """Give BlockLinear what its neighbours do. A value with more readers than those named here stays, and so does its node.

    1. Split in halves -> activation of the first -> times the second, after a product whose halves are whole panels: its gate.
    2. Add of a value of the same shape, after a product: its residual.
    3. RMSNormalization before products alone, or before a Gather of rows that products alone read: their norm.
    4. Reshapes, Squeezes and Unsqueezes before a product, from a value [1, T, columns] or [T, heads, columns / heads] on, and
       after one, down to a value of the shape that the product has: left out.

    The nodes are in no order afterwards.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        products = [node for node in model.graph if _is_product(node)]
        steps = (_skip_reshapes_before, _skip_reshapes_after, _take_gate, _take_residual)
        changed = [step(node) for node in products for step in steps]
        common.RemoveUnusedNodesPass()(model)  # they would count as readers
        changed += [_take_norm(node) for node in list(model.graph) if node.op_type == "RMSNormalization"]
        return ir.passes.PassResult(model, modified=any(changed))


def _is_product(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type == BLOCK_LINEAR.name


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The node that reads `value` and nothing else does, neither twice nor as an output of the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _skip_reshapes_before(product: ir.Node) -> bool:
    columns, value, found = product.attributes.get_int("columns"), product.inputs[0], None
    while value is not None and (node := value.producer()) is not None and node.op_type in RESHAPES:
        value = node.inputs[0]
        if value is not None and _is_rows(value, columns):
            found = value
    if found is not None:
        product.replace_input_with(0, found)
    return found is not None


def _is_rows(value: ir.Value, columns: int | None) -> bool:
    """Whether the value is [1, T, columns] or [T, heads, columns / heads]."""
    if value.shape is None or len(value.shape) != 3:
        return False
    first, second, last = value.shape
    return (first, last) == (1, columns) or (
        isinstance(second, int) and isinstance(last, int) and second * last == columns
    )


def _skip_reshapes_after(product: ir.Node) -> bool:
    result = product.outputs[0]
    value, found = result, None
    while (node := _only_reader(value)) is not None and node.op_type in RESHAPES and node.inputs[0] is value:
        value = node.outputs[0]
        if value.shape is not None and value.shape == result.shape and not value.is_graph_output():
            found = value
    if found is not None:
        found.replace_all_uses_with(result)
    return found is not None


def _take_gate(product: ir.Node) -> bool:
    width = product.attributes.get_int("rows")
    if product.attributes.get_int("gate", 0) or _has(product, RESIDUAL) or width is None or width % (2 * PANEL_ROWS):
        return False
    found = find_gate(_only_reader(product.outputs[0]))
    if found is None or found.activation not in GATES:
        return False
    product.attributes["gate"] = ir.AttrInt64("gate", GATES[found.activation])
    product.attributes["width"] = ir.AttrInt64("width", width // 2)
    _give(product, found.output)
    return True


def _take_residual(product: ir.Node) -> bool:
    result = product.outputs[0]
    add = _only_reader(result)
    if add is None or add.op_type != "Add" or _has(product, RESIDUAL):
        return False
    other = add.inputs[1 if add.inputs[0] is result else 0]
    if other is None or other.shape is None or other.shape != result.shape or other.is_initializer():
        return False
    _set_input(product, RESIDUAL, other)
    _give(product, add.outputs[0])
    return True


def _take_norm(norm: ir.Node) -> bool:
    source, scale = norm.inputs[:2]
    if source is None or scale is None or scale.shape is None or len(scale.shape) != 1:
        return False
    if norm.attributes.get_int("axis", -1) not in (-1, 2) or norm.outputs[0].is_graph_output():
        return False
    readers = [(use.node, use.idx) for use in norm.outputs[0].uses()]
    gathers = [node for node, index in readers if index == 0 and _gathers_rows(node)]
    products = [(node, index) for node, index in readers if node not in gathers]
    products += [(use.node, use.idx) for gather in gathers for use in gather.outputs[0].uses()]
    if not products or not all(index == 0 and _takes_norm(node, scale) for node, index in products):
        return False
    for gather in gathers:
        gather.replace_input_with(0, source)
    for product, _ in products:
        if product.inputs[0] is norm.outputs[0]:
            product.replace_input_with(0, source)
        _set_input(product, NORM, scale)
        product.attributes["epsilon"] = ir.AttrFloat32("epsilon", norm.attributes.get_float("epsilon", 1e-5) or 0.0)
    return True


def _gathers_rows(node: ir.Node) -> bool:
    """Whether the node chooses rows of [1, T, columns], and products alone may read them."""
    indices = node.inputs[1] if node.op_type == "Gather" else None
    if indices is None or indices.shape is None or len(indices.shape) != 1 or node.outputs[0].is_graph_output():
        return False
    return node.attributes.get_int("axis", 0) == 1


def _takes_norm(node: ir.Node, scale: ir.Value) -> bool:
    columns = node.attributes.get_int("columns", 0) if _is_product(node) else 0
    return not _has(node, NORM) and scale.shape == ir.Shape([columns])


def _has(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None


def _set_input(node: ir.Node, index: int, value: ir.Value) -> None:
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _give(product: ir.Node, value: ir.Value) -> None:
    """Let the product make `value`, whose nodes nothing reads any more."""
    result = product.outputs[0]
    result.shape, result.type, name = value.shape, value.type, value.name
    value.replace_all_uses_with(result, replace_graph_outputs=True)
    value.name, result.name = None, name
