"""Tests of PluginNodesPass: a node's inputs have no gaps, and its attributes name the plugin's creator."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from enginewright.builders.tensorrt.plugin_nodes import PluginNodesPass
from enginewright.plugins.ops.clp_emit import CLP_EMIT
from enginewright.plugins.ops.depth_mix import DEPTH_MIX
from enginewright.plugins.ops.op import Op
from enginewright.plugins.ops.paged_attention import PAGED_ATTENTION
from enginewright.plugins.ops.registry import OPS
from enginewright.plugins.ops.split_qkv import SPLIT_QKV


def make_node(op: Op, given: set[str], variadic: int = 2) -> tuple[ir.Model, ir.Node]:
    """A model of one node of `op` with its required inputs and the named optional ones."""
    names = []
    for tensor in op.inputs:
        if tensor.variadic:
            names += [f"{tensor.name}{i}" for i in range(variadic)]
        else:
            names.append(tensor.name if not tensor.optional or tensor.name in given else "")
    while names and not names[-1]:
        names.pop()
    outputs = [tensor.name for tensor in op.outputs]
    node = onnx.helper.make_node(op.name, names, outputs, domain="enginewright", layer=3)
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in names if name]
    results = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in outputs]
    graph = onnx.helper.make_graph([node], "g", inputs, results)
    opsets = [onnx.helper.make_opsetid("", 24), onnx.helper.make_opsetid("enginewright", 1)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))
    return model, model.graph.node(0)


@pytest.mark.parametrize(
    ("op", "given", "present"),
    [
        (PAGED_ATTENTION, set(), 0b0111_1111),
        (PAGED_ATTENTION, {"sinks"}, 0b1111_1111),
        (SPLIT_QKV, set(), 0b00001),
        (SPLIT_QKV, {"cos", "sin"}, 0b00111),
        (SPLIT_QKV, {"query_norm", "key_norm"}, 0b11001),
        (SPLIT_QKV, {"cos", "sin", "query_norm", "key_norm"}, 0b11111),
        (CLP_EMIT, {"out_codes", "out_scales"}, 0b0011_0111_1111),
        (CLP_EMIT, {"out_weight", "sample_rows", "query_starts"}, 0b1100_1111_1111),
        (DEPTH_MIX, set(), 0b1111),
    ],
)
def test_present_says_which_inputs_are_given(op: Op, given: set[str], present: int) -> None:
    model, node = make_node(op, given)
    expected = [value.name for value in node.inputs if value is not None]
    assert PluginNodesPass()(model).modified
    assert [None if value is None else value.name for value in node.inputs] == expected
    assert node.attributes.get_int("present") == present
    declared = [tensor.name for i, tensor in enumerate(op.inputs) if present >> i & 1]
    assert declared == [tensor.name for tensor in op.inputs if not tensor.optional or tensor.name in given]
    assert node.attributes.get_int("layer") == 3, "the op's own attributes stay"


def test_many_sources_are_one_bit() -> None:
    model, node = make_node(DEPTH_MIX, set(), variadic=7)
    PluginNodesPass()(model)
    assert node.attributes.get_int("present") == 0b1111 and len(node.inputs) == 10


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_the_creator_is_named(op: Op) -> None:
    model, node = make_node(op, set())
    PluginNodesPass()(model)
    assert node.attributes.get_string("plugin_version") == str(op.version)
    assert node.attributes.get_string("plugin_namespace") == "enginewright"
    proto = ir.to_proto(model)
    for item in (*proto.graph.node, *proto.opset_import):  # an exporter's process has schemas of ours for the checker
        item.domain = item.domain.replace("enginewright", "plugins")
    onnx.checker.check_model(proto)


def test_other_graphs_are_left_alone() -> None:
    text = '<ir_version: 10, opset_import: ["" : 24]> g (float[T] x) => (float[T] y) { y = Neg (x) }'
    model = ir.from_proto(onnx.parser.parse_model(text))
    assert not PluginNodesPass()(model).modified
    assert not model.graph.node(0).attributes
