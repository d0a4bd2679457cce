"""Writes layers of experts as ExpertMixture, whose matrices lie in panels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from enginewright.exporters.weights.graph_weights import add_weight, weight_of
from enginewright.exporters.weights.panel_products import PANELS, PanelLayout
from enginewright.exporters.weights.stored_form import Encoding, Mixture, WeightUse
from enginewright.exporters.weights.weight import Weight
from enginewright.plugins.ops.block_linear import PANEL_ROWS
from enginewright.plugins.ops.expert_mixture import EXPERT_MIXTURE, MIXTURE_GATES
from enginewright.plugins.ops.op import DOMAIN


@dataclass(frozen=True)
class _Stack:
    """The matrices of all experts, which have one layout; `_stacked` creates it."""

    name: str
    layout: PanelLayout
    weight: Weight


def in_panels(mixture: Mixture, up: Sequence[WeightUse]) -> list[WeightUse]:
    """Return the uses `up` with their rows as the op reads them: the gates before what these multiply."""
    if not mixture.gate.alternate:
        return list(up)
    order = _row_order(up[0].rows.shape[0])
    return [dataclasses.replace(use, rows=use.rows.with_rows(order)) for use in up]


def _row_order(rows: int) -> np.ndarray:
    """The numbers that the rows of the op's matrices have in a model whose gates alternate with what they multiply."""
    numbers = np.arange(rows)
    return np.concatenate([numbers[::2], numbers[1::2]])


def write_panel_mixture(mixture: Mixture, up: Sequence[Encoding], down: Sequence[Encoding], *, exact: bool) -> bool:
    """Replace the mixture by one op, if the experts' codes allow it; says whether they do.

    1. All experts have panels of one layout, whose columns are in their order.
    2. The gate has a multiple of 16 outputs.

    up, down: of the experts' matrices, those of `up` after `in_panels`.
    """
    first, second = _stacked(mixture.up, up), _stacked(mixture.down, down)
    if first is None or second is None or first.layout.n % (2 * PANEL_ROWS):
        return False
    graph, before = mixture.graph, mixture.result.producer()
    assert before is not None
    routing = [_by_token(value, mixture.chosen) for value in (mixture.ids, mixture.weights)]
    inputs = [
        mixture.x,
        *(value for value, _ in routing),
        *(add_weight(graph, f"{stack.name}.{PANELS}", stack.weight) for stack in (first, second)),
        _ordered_bias(mixture),
        mixture.down_bias,
    ]
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, int | float] = {
        "columns": second.layout.n,
        "inner": second.layout.k,
        "gate": MIXTURE_GATES[mixture.gate.activation],
        "exact": int(exact),
    }
    if mixture.gate.limit is not None:
        attributes |= {"slope": mixture.gate.slope, "limit": mixture.gate.limit}
    for prefix, stack in (("up", first), ("down", second)):
        codes = {key: value for key, value in stack.layout.attributes.items() if key not in ("rows", "columns")}
        attributes.update({f"{prefix}_{key}": value for key, value in codes.items()})
    node = ir.node(EXPERT_MIXTURE.name, inputs, domain=DOMAIN, attributes=attributes)
    node.outputs[0].type, node.outputs[0].shape = mixture.result.type, mixture.result.shape
    graph.insert_before(before, [*(one for _, nodes in routing for one in nodes), node])
    mixture.result.replace_all_uses_with(node.outputs[0])
    return True


def _stacked(products: Sequence[ir.Node], encodings: Sequence[Encoding]) -> _Stack | None:
    """The panels [E, panels, bytes] of all experts; None where they differ in more than their numbers."""
    layout = encodings[0].layout
    if not isinstance(layout, PanelLayout) or layout.order or any(each.layout != layout for each in encodings):
        return None
    panels = [each.parts[PANELS] for each in encodings]
    matrix = products[0].inputs[1]
    assert matrix is not None and matrix.name is not None
    name = matrix.name.partition(".split.")[0]  # FoldWeightsPass calls the parts of a tensor NAME.split.0.squeeze

    def load() -> np.ndarray:
        stack = np.empty((len(panels), *panels[0].shape), np.int8)
        for i, panel in enumerate(panels):  # memory holds the result and one expert at a time
            stack[i] = panel.load()
        return stack

    shape = (len(panels), *panels[0].shape)
    return _Stack(name, layout, Weight(shape=shape, dtype=ir.DataType.INT8, load=load))


def _ordered_bias(mixture: Mixture) -> ir.Value | None:
    """The biases of `up` in the order of its rows."""
    bias, weight = mixture.up_bias, weight_of(mixture.up_bias)
    if bias is None or weight is None or not mixture.gate.alternate:
        return bias
    order = _row_order(weight.shape[1])
    ordered = weight.derive(weight.shape, lambda values: values[:, order])
    return add_weight(mixture.graph, f"{bias.name}.{PANELS}", ordered)


def _by_token(flat: ir.Value, chosen: int) -> tuple[ir.Value, list[ir.Node]]:
    """The values [T, K] of a list [T * K], and the nodes that make them: none where the list is made of them."""
    node = flat.producer()
    if node is not None and node.op_type == "Reshape":
        source = node.inputs[0]
        if source is not None and source.shape is not None and len(source.shape) == 2 and source.shape[1] == chosen:
            return source, []
    shape = ir.node("Constant", [], attributes={"value": ir.tensor(np.array([-1, chosen], np.int64))})
    folded = ir.node("Reshape", [flat, shape.outputs[0]])
    folded.outputs[0].type = flat.type
    return folded.outputs[0], [shape, folded]
