"""Weights as recipes: each has a shape, a type and a function that computes the values when the engine is written.

Methods and graph passes combine recipes (merge, transpose, concatenate, quantise) without holding a tensor. Memory holds one
tensor at a time, and what its recipe reads.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from enginewright.exporters.weights.factored_scales import FactoredScales, join_factored
from enginewright.runtime.errors import ExportError

WeightForm = tuple[int, int, int, str, str]
"""(bits, group size, input axis, "" or the offset that groups have, "" or a hash of the order of columns)."""
_DERIVED = "other numbers are computed of its numbers"


@dataclass(frozen=True, kw_only=True)
class CodeForm:
    """The form of codes that a method will make; the method creates it.

    bits: of a code.
    group_size: columns that share a scale; None: one scale a row.
    """

    bits: int
    group_size: int | None


@dataclass(frozen=True, kw_only=True)
class QuantizedRows:
    """A quantised matrix of n rows and k columns.

    Element i, j, with g = j // group_size, is one of

        scales[i, g] * codes[i, j]                          without an offset
        scales[i, g] * (codes[i, j] - zero_points[i, g])
        scales[i, g] * (codes[i, j] + 2^(bits - 1)) + minima[i, g]

    `open_block` creates it from the results of a method that quantises, and a source from a checkpoint's codes. Rows are
    outputs, columns inputs.

    bits: 2 to 8; codes lie in -2^(bits - 1) .. 2^(bits - 1) - 1.
    group_size: columns that share a scale, a divisor of k.
    load: returns codes[n, k] int8 and scales[n, k / group_size] float32.
    input_axis: the axis of the stored weight that the columns lie along: 1, or 0 when it is transposed.
    zero_points: returns zero points [n, k / group_size] int8, in the range of codes; None: there are none.
    minima: returns minima [n, k / group_size] float32; None: there are none. Zero points and minima exclude each other.
    halves: whether every scale and every minimum is an IEEE half, which a form may store without a change.
    factored: returns the scales and minima as products, which a form may store without a change; None: they are given as
        numbers alone.
    order: returns order[k] int32: column j of codes is column order[j] of the matrix, so that columns that share a scale need
        not be neighbours; None: the columns are in their order.
    """

    bits: int
    group_size: int
    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    input_axis: int = 1
    zero_points: Callable[[], np.ndarray] | None = None
    minima: Callable[[], np.ndarray] | None = None
    halves: bool = False
    factored: Callable[[], FactoredScales] | None = None
    order: Callable[[], np.ndarray] | None = None

    def __post_init__(self) -> None:
        assert self.zero_points is None or self.minima is None

    @property
    def offset(self) -> str:
        """The offset that groups have: "zero_points", "minima", or "" for none."""
        return "zero_points" if self.zero_points is not None else "minima" if self.minima is not None else ""

    @functools.cached_property
    def order_hash(self) -> str:
        """A hash of the order of columns; empty where they are in their order."""
        return "" if self.order is None else hashlib.sha256(self.order().astype("<i4").tobytes()).hexdigest()

    def restore(self) -> np.ndarray:
        """The weight as it is stored, float32."""
        codes, scales = self.load()
        rows: np.ndarray = codes.astype(np.float32)
        groups = rows.reshape(*scales.shape, self.group_size)
        if self.zero_points is not None:
            groups -= self.zero_points()[..., None]
        if self.minima is not None:
            groups += np.float32(1 << (self.bits - 1))
        groups *= scales[..., None]
        if self.minima is not None:
            groups += self.minima()[..., None]
        if self.order is not None:
            rows[:, self.order()] = rows.copy()
        return rows if self.input_axis == 1 else rows.T

    def transposed(self) -> QuantizedRows:
        """The same for the transposed matrix."""
        return dataclasses.replace(self, input_axis=1 - self.input_axis)

    def with_rows(self, order: np.ndarray) -> QuantizedRows:
        """The same with its rows in another order."""

        def ordered(offset: Callable[[], np.ndarray] | None) -> Callable[[], np.ndarray] | None:
            return None if offset is None else lambda: offset()[order]

        def load() -> tuple[np.ndarray, np.ndarray]:
            codes, scales = self.load()
            return codes[order], scales[order]

        return dataclasses.replace(self, load=load, zero_points=ordered(self.zero_points), minima=ordered(self.minima))


@dataclass(frozen=True, kw_only=True)
class StoredType:
    """The type of codes that a checkpoint stores a matrix in; `bind_parameters` creates it.

    name: of the type, as "Q4_1".
    restored: why the matrix is numbers for an engine all the same, as a phrase; empty: its codes are in `Weight.quantized`.
    matrices: of the checkpoint that it is made of.
    """

    name: str
    restored: str = ""
    matrices: int = 1


@dataclass(frozen=True, kw_only=True)
class Weight:
    """The recipe of a tensor; `bind_parameters` creates those of a checkpoint, and methods and passes derive others.

    shape: known without loading.
    dtype: known without loading.
    load: computes the values anew at each call.
    parts: for a tensor of experts, the slices [1, ...] along axis 0, each of which can be loaded alone; empty for any other.
    quantized: for a matrix that is codes, or a slice [1, ...] that is such a matrix, its codes and scales; `load` then
        restores it from them.
    stored: for a matrix that the checkpoint stores as codes, their type; None for any other.
    """

    shape: tuple[int, ...]
    dtype: ir.DataType
    load: Callable[[], np.ndarray]
    parts: tuple[Weight, ...] = ()
    quantized: QuantizedRows | None = None
    stored: StoredType | None = None

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def form(self) -> WeightForm | None:
        """The form in which the weight is quantised; None for one that is not."""
        rows = self.quantized
        return None if rows is None else (rows.bits, rows.group_size, rows.input_axis, rows.offset, rows.order_hash)

    def transposed(self) -> Weight:
        """The same with its last two axes exchanged."""
        shape = (*self.shape[:-2], self.shape[-1], self.shape[-2])
        if self.quantized is not None:
            return quantized_weight(shape, self.quantized.transposed(), self.stored)
        return dataclasses.replace(self.derive(shape, lambda x: np.swapaxes(x, -1, -2)), stored=self.stored)

    def given_up(self, reason: str) -> StoredType | None:
        """The type of codes of the weight, or of its parts together, that are numbers from now on; None where there are none.

        reason: why, if they were codes until now.
        """
        stored = self.stored or (_join_types(self.parts) if self.parts else None)
        if stored is None or stored.restored:
            return stored
        return dataclasses.replace(stored, restored=reason)

    def in_place_of(self, other: Weight, reason: str) -> Weight:
        """The same with the types of codes that `other`, whose place it takes, and its parts were stored in.

        reason: why these codes are given up, if they are not yet.
        """
        if self.stored is not None:
            return self
        pairs = zip(self.parts, other.parts, strict=True) if len(self.parts) == len(other.parts) else ()
        parts = tuple(mine.in_place_of(theirs, reason) for mine, theirs in pairs) or self.parts
        stored = None if parts else other.given_up(reason)
        same = stored is None and all(one is two for one, two in zip(parts, self.parts, strict=True))
        return self if same else dataclasses.replace(self, stored=stored, parts=parts)

    def restored(self, reason: str) -> Weight:
        """The same as numbers.

        reason: why the codes that a checkpoint stores are given up, if it is one of those.
        """
        parts = tuple(part.restored(reason) for part in self.parts)
        stored = None if parts else self.given_up(reason)
        return dataclasses.replace(self, quantized=None, stored=stored, parts=parts)

    def squeezed(self) -> Weight:
        """The matrix of a slice [1, n, k]."""
        shape = self.shape[1:]
        if self.quantized is not None:
            return quantized_weight(shape, self.quantized, self.stored)
        return dataclasses.replace(self.derive(shape, lambda x: x[0]), stored=self.stored)

    def with_rows(self, order: np.ndarray) -> Weight:
        """The matrix [n, k] with its rows in another order; codes stay codes.

        order: [n], the present number of each row.
        """
        if self.quantized is not None:
            return quantized_weight(self.shape, self.quantized.with_rows(order), self.stored)
        return dataclasses.replace(self.derive(self.shape, lambda x: x[order]), stored=self.stored)

    def derive(
        self, shape: Sequence[int], change: Callable[[np.ndarray], np.ndarray], dtype: ir.DataType | None = None
    ) -> Weight:
        """Return the weight that `change` makes from the values of this one, with the type of codes that these were stored in.

        Raises:
            ExportError: this weight is quantised, and the choice of its codes would be lost.
        """
        if self.quantized is not None:
            raise ExportError(f"a quantised weight of shape {list(self.shape)} would be changed; quantise after that")
        stored = self.given_up(_DERIVED)
        return Weight(shape=tuple(shape), dtype=dtype or self.dtype, load=lambda: change(self.load()), stored=stored)


def quantized_weight(shape: Sequence[int], rows: QuantizedRows, stored: StoredType | None = None) -> Weight:
    """Return the weight whose values are restored from `rows`: a matrix, or a slice [1, ...] that is one."""
    shape = tuple(shape)
    return Weight(
        shape=shape,
        dtype=ir.DataType.FLOAT,
        load=lambda: rows.restore().reshape(shape),
        quantized=rows,
        stored=stored,
    )


def concatenate(parts: Sequence[Weight], axis: int) -> Weight:
    """Return the parts one after another along `axis`.

    Quantised parts of one form stay quantised when they are joined along their outputs.

    Raises:
        ExportError: quantised parts cannot be joined like this.
    """
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    forms = {part.form for part in parts}
    if forms != {None}:
        if len(forms) != 1 or None in forms or parts[0].quantized is None or parts[0].quantized.input_axis == axis:
            raise ExportError(
                f"weights {[list(part.shape) for part in parts]}: quantised in different ways, cannot be joined"
            )
        rows = _join_rows([part.quantized for part in parts if part.quantized is not None])
        return quantized_weight(shape, rows, _join_types(parts))

    def load() -> np.ndarray:
        result = np.empty(shape, parts[0].dtype.numpy())
        begin = 0
        for part in parts:  # memory holds the result and one part at a time
            index = [slice(None)] * len(shape)
            index[axis] = slice(begin, begin + part.shape[axis])
            result[tuple(index)] = part.load()
            begin += part.shape[axis]
        return result

    return Weight(shape=tuple(shape), dtype=parts[0].dtype, load=load, stored=_join_types(parts))


def _join_types(parts: Sequence[Weight]) -> StoredType | None:
    """The type of all parts; None where one has none."""
    types = [part.stored for part in parts if part.stored is not None]
    if len(types) != len(parts):
        return None
    names = "+".join(dict.fromkeys(each.name for each in types))
    reason = next((each.restored for each in types if each.restored), "")
    return StoredType(name=names, restored=reason, matrices=sum(each.matrices for each in types))


def _join_rows(parts: Sequence[QuantizedRows]) -> QuantizedRows:
    """The rows of all parts, which have one form."""

    def load() -> tuple[np.ndarray, np.ndarray]:
        loaded = [part.load() for part in parts]
        return np.concatenate([codes for codes, _ in loaded]), np.concatenate([scales for _, scales in loaded])

    def join(offsets: Sequence[Callable[[], np.ndarray] | None]) -> Callable[[], np.ndarray] | None:
        present = [offset for offset in offsets if offset is not None]
        return (lambda: np.concatenate([offset() for offset in present])) if present else None

    zero_points, minima = join([part.zero_points for part in parts]), join([part.minima for part in parts])
    factored = [part.factored for part in parts if part.factored is not None]
    return dataclasses.replace(
        parts[0],
        load=load,
        zero_points=zero_points,
        minima=minima,
        halves=all(part.halves for part in parts),
        factored=(lambda: join_factored([each() for each in factored])) if len(factored) == len(parts) else None,
    )
