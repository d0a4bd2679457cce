"""Attaches weights to the values of a graph, from capture until the graph is saved."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from enginewright.exporters.weights.weight import Weight

KEY = "enginewright.weight"  # of a value's weight in ir.Value.meta


def weight_of(value: ir.Value | None) -> Weight | None:
    """The recipe of a graph value that is a weight; None for any other value."""
    found: Weight | None = None if value is None else value.meta.get(KEY)
    return found


def find_bias(product: ir.Node, width: int) -> tuple[ir.Node, ir.Value] | None:
    """The Add that reads `product`, and the bias weight [width] that it adds; None unless that Add is the only reader."""
    readers = [user for user, _ in product.outputs[0].uses()]
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    other = next((value for value in readers[0].inputs if value is not product.outputs[0]), None)
    weight = weight_of(other)
    return (readers[0], other) if other is not None and weight is not None and weight.shape == (width,) else None


def add_weight(graph: ir.Graph, name: str, weight: Weight) -> ir.Value:
    """Add `weight` to `graph` as an input; `to_initializers` makes it an initializer when rewriting is done.

    No rule folds an input, so no pass ever asks for its values.
    """
    value = ir.Value(name=name, shape=ir.Shape(weight.shape), type=ir.TensorType(weight.dtype))
    value.meta[KEY] = weight
    graph.inputs.append(value)
    return value


def to_initializers(graph: ir.Graph) -> None:
    """Turn every weight that is used into an initializer whose values are computed when the model is saved."""
    for value in [v for v in graph.inputs if weight_of(v) is not None]:
        graph.inputs.remove(value)
        if not value.uses():
            continue
        weight = value.meta.pop(KEY)
        value.const_value = ir.LazyTensor(
            partial(_tensor, weight, value.name or ""),
            dtype=weight.dtype,
            shape=ir.Shape(weight.shape),
            name=value.name,
        )
        graph.register_initializer(value)


def _tensor(weight: Weight, name: str) -> ir.Tensor[np.ndarray]:
    values = np.ascontiguousarray(weight.load())
    assert values.shape == weight.shape, f"{name}: got {values.shape}, expected {weight.shape}"
    return ir.Tensor(values, dtype=weight.dtype, shape=ir.Shape(weight.shape), name=name)
