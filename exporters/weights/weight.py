"""Weights as recipes: a shape, a type and how to make the values, run one at a time when the engine is written.

Methods and graph passes compose recipes (merge, transpose, concatenate, quantise) without holding a tensor. What is
in memory at once is one tensor and what its recipe reads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from enginewright.runtime.errors import ExportError

WeightForm = tuple[int, int, int]  # bits, group size, input axis


@dataclass(frozen=True, kw_only=True)
class QuantizedRows:
    """A matrix of n rows and k columns as whole numbers: its element i, j is scales[i, j // group_size] * codes[i, j].

    bits: 2 to 8; codes lie in -2^(bits - 1) .. 2^(bits - 1) - 1. group_size: a divisor of k; k is one scale a row.
    load: codes[n, k] int8 and scales[n, k / group_size] float32. Rows are outputs, columns inputs.
    input_axis: the axis of the weight, as it lies, along which its columns lie: 1, or 0 when it is transposed.
    """

    bits: int
    group_size: int
    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    input_axis: int = 1

    def restore(self) -> np.ndarray:
        """The matrix as it lies, float32."""
        codes, scales = self.load()
        rows: np.ndarray = codes.astype(np.float32)
        rows.reshape(*scales.shape, self.group_size)[...] *= scales[..., None]
        return rows if self.input_axis == 1 else rows.T

    def transposed(self) -> QuantizedRows:
        """The same for the transposed matrix."""
        return dataclasses.replace(self, input_axis=1 - self.input_axis)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A tensor that `load` makes anew at each call; shape and dtype are known without it.

    parts: for a tensor of experts, its slices [1, ...] along axis 0, each loadable alone; empty for any other.
    quantized: for a matrix that a method has quantised, what is stored; `load` then restores it.
    """

    shape: tuple[int, ...]
    dtype: ir.DataType
    load: Callable[[], np.ndarray]
    parts: tuple[Weight, ...] = ()
    quantized: QuantizedRows | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def form(self) -> WeightForm | None:
        """How it is quantised, if it is."""
        rows = self.quantized
        return None if rows is None else (rows.bits, rows.group_size, rows.input_axis)

    def transposed(self) -> Weight:
        """The matrix with its two axes exchanged."""
        if self.quantized is not None:
            return quantized_weight(self.shape[::-1], self.quantized.transposed())
        return self.derive(self.shape[::-1], lambda x: x.T)

    def derive(
        self, shape: Sequence[int], change: Callable[[np.ndarray], np.ndarray], dtype: ir.DataType | None = None
    ) -> Weight:
        """The weight that `change` makes of this one's values.

        Raises:
            ExportError: this one is quantised: what was chosen for its codes would be lost.
        """
        if self.quantized is not None:
            raise ExportError(f"a quantised weight of shape {list(self.shape)} would be changed; quantise after that")
        return Weight(shape=tuple(shape), dtype=dtype or self.dtype, load=lambda: change(self.load()))


def quantized_weight(shape: Sequence[int], rows: QuantizedRows) -> Weight:
    """The weight that restores `rows`."""
    return Weight(shape=tuple(shape), dtype=ir.DataType.FLOAT, load=rows.restore, quantized=rows)


def concatenate(parts: Sequence[Weight], axis: int) -> Weight:
    """The parts one after another along `axis`; quantised ones of one form, along their outputs, stay quantised."""
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    forms = {part.form for part in parts}
    if forms != {None}:
        if len(forms) != 1 or None in forms or parts[0].quantized is None or parts[0].quantized.input_axis == axis:
            raise ExportError(
                f"weights {[list(part.shape) for part in parts]}: quantised in different ways, cannot be joined"
            )
        return quantized_weight(shape, dataclasses.replace(parts[0].quantized, load=partial(_join_rows, parts)))

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


def _join_rows(parts: Sequence[Weight]) -> tuple[np.ndarray, np.ndarray]:
    loaded = [part.quantized.load() for part in parts if part.quantized is not None]
    return np.concatenate([codes for codes, _ in loaded]), np.concatenate([scales for _, scales in loaded])
