"""Prepares the nodes of enginewright's own ops for TensorRT's ONNX parser, which makes plugins of them."""

from __future__ import annotations

import onnx_ir as ir

from enginewright.plugins.ops.op import DOMAIN, Op
from enginewright.plugins.ops.registry import OPS


class PluginNodesPass(ir.passes.InPlacePass):
    """Give every node of domain `enginewright` the form and the attributes that a TensorRT plugin needs.

    1. An absent optional input is removed, because a plugin's inputs have no gaps. Bit i of the attribute `present` says
       that input i of the op's declaration is given; a variadic input counts as one.
    2. `plugin_version` and `plugin_namespace` name the plugin's creator.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if node.domain == DOMAIN]
        for node in nodes:
            _prepare(node, OPS[node.op_type])
        return ir.passes.PassResult(model, modified=bool(nodes))


def _prepare(node: ir.Node, op: Op) -> None:
    last = len(op.inputs) - 1
    present = 0
    for i, value in enumerate(node.inputs):
        if value is not None:
            present |= 1 << min(i, last)
    given = [value for value in node.inputs if value is not None]
    node.resize_inputs(len(given))
    for i, value in enumerate(given):
        node.replace_input_with(i, value)
    node.attributes.add(ir.AttrInt64("present", present))
    node.attributes.add(ir.AttrString("plugin_version", str(op.version)))
    node.attributes.add(ir.AttrString("plugin_namespace", DOMAIN))
