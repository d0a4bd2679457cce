"""Weights as recipes: a shape, a type and how to make the values, run one at a time when the engine is written.

Methods and graph passes compose recipes (merge, transpose, concatenate, quantise) without holding a tensor. What is
in memory at once is one tensor and what its recipe reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

KEY = "enginewright.weight"  # in ir.Value.meta


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A tensor that `load` makes anew at each call; shape and dtype are known without it.

    parts: for a tensor of experts, its slices [1, ...] along axis 0, each loadable alone; empty for any other.
    """

    shape: tuple[int, ...]
    dtype: ir.DataType
    load: Callable[[], np.ndarray]
    parts: tuple[Weight, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def transposed(self) -> Weight:
        """The matrix with its two axes exchanged."""
        return self.derive(self.shape[::-1], lambda x: x.T)

    def derive(
        self, shape: Sequence[int], change: Callable[[np.ndarray], np.ndarray], dtype: ir.DataType | None = None
    ) -> Weight:
        """The weight that `change` makes of this one's values."""
        return Weight(shape=tuple(shape), dtype=dtype or self.dtype, load=lambda: change(self.load()))


def concatenate(parts: Sequence[Weight], axis: int) -> Weight:
    """The parts one after another along `axis`."""
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)

    def load() -> np.ndarray:
        result = np.empty(shape, parts[0].dtype.numpy())
        begin = 0
        for part in parts:  # one part in memory at a time, beside the result
            index = [slice(None)] * len(shape)
            index[axis] = slice(begin, begin + part.shape[axis])
            result[tuple(index)] = part.load()
            begin += part.shape[axis]
        return result

    return Weight(shape=tuple(shape), dtype=parts[0].dtype, load=load)


def weight_of(value: ir.Value | None) -> Weight | None:
    """The recipe behind a graph value, if it is a weight."""
    found: Weight | None = None if value is None else value.meta.get(KEY)
    return found


def find_bias(product: ir.Node, width: int) -> tuple[ir.Node, ir.Value] | None:
    """The Add that alone reads `product`, and the bias weight [width] that it adds, if there is one."""
    readers = [user for user, _ in product.outputs[0].uses()]
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    other = next((value for value in readers[0].inputs if value is not product.outputs[0]), None)
    weight = weight_of(other)
    return (readers[0], other) if other is not None and weight is not None and weight.shape == (width,) else None


def add_weight(graph: ir.Graph, name: str, weight: Weight) -> ir.Value:
    """Add `weight` to `graph` as an input; `to_initializers` makes it an initializer once rewriting is done.

    As an input no rule can fold it, so that no pass ever asks for its values.
    """
    value = ir.Value(name=name, shape=ir.Shape(weight.shape), type=ir.TensorType(weight.dtype))
    value.meta[KEY] = weight
    graph.inputs.append(value)
    return value


def to_initializers(graph: ir.Graph) -> None:
    """Turn every weight that is used into an initializer whose values are made when the model is saved."""
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
