"""Finds gates after a packed product: the activation of its first half times its second half."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class FoundGate:
    """A gate; `find_gate` creates it.

    activation: "silu", "gelu_tanh" or "gelu".
    output: the value that the gate makes.
    """

    activation: str
    output: ir.Value


def find_gate(split: ir.Node | None) -> FoundGate | None:
    """The gate that begins with `split`, a Split of a last axis in two halves; None where there is none, or where another node
    reads one of its values.
    """
    if split is None or split.op_type != "Split" or len(split.outputs) != 2:
        return None
    first, second = split.outputs
    if (
        first.shape is None
        or second.shape is None
        or split.attributes.get_int("axis", 0) not in (-1, len(first.shape) - 1)
    ):
        return None
    uses = list(second.uses())
    product = uses[0].node if len(uses) == 1 else None
    if first.shape != second.shape or product is None or product.op_type != "Mul" or second.is_graph_output():
        return None
    activated = next((value for value in product.inputs if value is not second), None)
    activation = None if activated is None else _activation(activated, first)
    return None if activation is None else FoundGate(activation, product.outputs[0])


def _activation(value: ir.Value, source: ir.Value) -> str | None:
    """The name of the activation that makes `value` of `source`, where nothing else reads either."""
    node = value.producer()
    if node is None or len(value.uses()) != 1 or value.is_graph_output() or source.is_graph_output():
        return None
    if node.op_type == "Gelu" and node.inputs[0] is source and len(source.uses()) == 1:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(node.attributes.get_string("approximate", "none") or "none")
    if node.op_type != "Mul" or source not in node.inputs or len(source.uses()) != 2:
        return None
    share = next((each for each in node.inputs if each is not source), None)
    sigmoid = None if share is None else share.producer()
    if (
        sigmoid is None
        or sigmoid.op_type != "Sigmoid"
        or sigmoid.inputs[0] is not source
        or len(sigmoid.outputs[0].uses()) != 1
    ):
        return None
    return "silu"
