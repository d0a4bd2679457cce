"""Small graphs from ONNX text, with some inputs as weights, and their values under ONNX Runtime."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from enginewright.exporters.weights.graph_weights import KEY, to_initializers
from enginewright.exporters.weights.weight import QuantizedRows, Weight, quantized_weight

Arrays = dict[str, np.ndarray]


def make_graph(text: str, weights: Arrays | None = None, *, closed: bool = False) -> ir.Model:
    """The model of `text`, a graph in ONNX's text syntax; closed: weights raise when they are loaded."""
    header = '<ir_version: 10, opset_import: ["" : 23]>\n'
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(header + text)))
    for value in model.graph.inputs:
        if value.name in (weights or {}):
            value.meta[KEY] = make_weight((weights or {})[value.name], closed=closed)
    return model


def make_weight(array: np.ndarray, *, closed: bool = False) -> Weight:
    """A float32 weight; closed: it raises when it is loaded."""

    def load() -> np.ndarray:
        assert not closed, "a weight was loaded"
        return array

    return Weight(shape=array.shape, dtype=ir.DataType.FLOAT, load=load)


def quantized(
    rows: int,
    columns: int,
    bits: int = 4,
    group_size: int = 2,
    seed: int = 0,
    *,
    offset: str = "",
    order: int | None = None,
) -> Weight:
    """A weight [rows, columns] of random codes and scales.

    offset: "zero_points" or "minima", or none.
    order: seed of a random order of the columns; None: they are in their order.
    """
    rng = np.random.default_rng(seed)
    half = 1 << (bits - 1)
    codes = rng.integers(-half, half, (rows, columns)).astype(np.int8)
    scales = rng.random((rows, columns // group_size), np.float32)
    zero_points = rng.integers(-half, half, scales.shape).astype(np.int8)
    minima = rng.standard_normal(scales.shape).astype(np.float32)
    found = QuantizedRows(
        bits=bits,
        group_size=group_size,
        load=lambda: (codes.copy(), scales.copy()),
        zero_points=(lambda: zero_points.copy()) if offset == "zero_points" else None,
        minima=(lambda: minima.copy()) if offset == "minima" else None,
        order=None if order is None else lambda: np.random.default_rng(order).permutation(columns).astype(np.int32),
    )
    return quantized_weight((rows, columns), found)


def evaluate(model: ir.Model, feeds: Arrays) -> list[np.ndarray]:
    """The outputs, in order; weights become initializers, so that no pass can follow."""
    to_initializers(model.graph)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(None, feeds)
    return results


def op_types(model: ir.Model) -> collections.Counter[str]:
    """The number of nodes of each type, without constants and nodes whose outputs are not read any more."""
    live = [node for node in model.graph if any(v.uses() or v.is_graph_output() for v in node.outputs)]
    return collections.Counter(node.op_type for node in live if node.op_type != "Constant")


def random_arrays(**shapes: tuple[int, ...]) -> Arrays:
    """Normal float32 arrays by name, the same for the same names and shapes."""
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def check_pass(
    change: ir.passes.PassBase, text: str, weights: Arrays, feeds: Arrays, *, tolerance: float = 1e-6
) -> tuple[collections.Counter[str], bool]:
    """Run a pass without loading a weight, compare outputs before and after; return node types and `modified`."""
    closed = make_graph(text, weights, closed=True)
    change(closed)
    model = make_graph(text, weights)
    modified = change(model).modified
    types = op_types(model)
    assert types == op_types(closed)
    for got, expected in zip(evaluate(model, feeds), evaluate(make_graph(text, weights), feeds), strict=True):
        assert got.shape == expected.shape and got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, atol=tolerance, rtol=0)
    return types, modified
