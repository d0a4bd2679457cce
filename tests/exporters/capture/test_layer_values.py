"""Tests of finding the values of layers in a graph."""

from __future__ import annotations

import onnx_ir as ir

from enginewright.exporters.capture.layer_values import find_layers
from enginewright.plugins.ops.op import DOMAIN
from enginewright.plugins.ops.registry import OPS


def node_of(op: str, **given: ir.Value) -> ir.Node:
    """A node of one of our ops in layer 0; inputs that are not given are values of their own."""
    inputs = [given.get(tensor.name, ir.Value(name=f"{op}.{tensor.name}")) for tensor in OPS[op].inputs]
    return ir.node(op, inputs, {"layer": 0}, domain=DOMAIN, num_outputs=len(OPS[op].outputs))


def test_marks_of_a_layer_are_not_its_attention() -> None:
    attention = node_of("PagedAttention")
    marks = node_of("MarkTokens", tiles=attention.outputs[1])
    logits = ir.node("Identity", [attention.outputs[0]])
    graph = ir.Graph([], logits.outputs, nodes=[attention, marks, logits])
    assert find_layers(graph, logits.outputs[0], None)[0].attention is attention.outputs[0]
