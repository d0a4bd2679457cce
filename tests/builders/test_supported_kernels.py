"""Tests of the check that GPU kernels support a graph's ops: each op's declaration says what they do not."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from enginewright.builders.supported_kernels import check_graph
from enginewright.plugins.ops.op import DOMAIN
from enginewright.runtime.errors import BuildError


def graph_of(op: str, dim: int, **attributes: int) -> ir.Graph:
    """A graph of one node whose query, key and value have heads of `dim`."""
    inputs = [ir.Value(name=name, shape=ir.Shape(["T", 2, dim])) for name in ("query", "key", "value")]
    node = ir.node(op, inputs, attributes=attributes, domain=DOMAIN)
    return ir.Graph(inputs, node.outputs, nodes=[node])


@pytest.mark.parametrize(
    "graph",
    [
        graph_of("PagedAttention", 80),
        graph_of("KVarNAttention", 64),
        graph_of("KVarNAttention", 64, k_bits=8, v_bits=8),
        graph_of("KVarNAttention", 64, k_bits=2),  # values have two bits by default
        graph_of("DepthMix", 17),  # whose declaration refuses nothing
    ],
)
def test_what_kernels_support_passes(graph: ir.Graph) -> None:
    check_graph(graph, "tensorrt")


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            graph_of("PagedAttention", 72),
            "--backend tensorrt: got heads of 72 and 72, expected one of 32 and 32, .*; build with --plugins none",
        ),
        (graph_of("KVarNAttention", 80), "kvarn: got heads of 80, expected one of 32, 64, 128, 256; export the model"),
        (graph_of("KVarNAttention", 64, v_bits=8), "got k_bits=4,v_bits=8, expected one of k_bits=2,v_bits=2, "),
        (
            graph_of("BlockLinear", 64),
            "got weights in panels for CPUs, .*; build the engine with --weights KIND:linear=onnx",
        ),
        (
            graph_of("BlockLinear", 64, bits=16),
            "got weights of bfloat16 in panels for CPUs, .*; build the engine with --dtype bfloat16 in place of --weights",
        ),
        (
            graph_of("TreeAttention", 64),
            "got an op 'TreeAttention', expected one of AddLora, ClpEmit, .*, DepthMix, .*; upgrade",
        ),
    ],
)
def test_what_they_do_not_is_refused(graph: ir.Graph, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        check_graph(graph, "tensorrt")
