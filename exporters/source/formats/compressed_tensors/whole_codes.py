"""Matrices of whole codes with scales, zero points and an order of columns, as engines keep them or as numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from enginewright.exporters.source.formats.compressed_tensors.scheme import Scheme
from enginewright.exporters.source.quantized.exported_bits import narrow
from enginewright.exporters.source.quantized.quantized_folder import StoredMatrix
from enginewright.exporters.source.quantized.shared_scales import ScaleTile
from enginewright.exporters.source.quantized.stored_parts import ModuleParts, matrix_of_codes, matrix_of_numbers
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.errors import ExportError

GROUPS, SCALE, ZEROS = "weight_g_idx", "weight_scale", "weight_zero_point"
UNEQUAL = "its groups of columns differ in size"
RAGGED = "its blocks do not divide its columns"


@dataclass(frozen=True, kw_only=True)
class WholeCodes:
    """The whole codes of one module, and what goes with them; a layout creates it after it has checked their headers.

    parts: the stored tensors.
    scheme: of the module.
    tile: the elements that share a scale.
    names: of the tensors of codes and scales.
    load: returns codes [n, k] int8 around 0.
    zeros: returns zero points [n, groups] int8 in the range of codes; called only if they are stored.
    """

    parts: ModuleParts
    scheme: Scheme
    tile: ScaleTile
    names: tuple[str, ...]
    load: Callable[[], np.ndarray]
    zeros: Callable[[], np.ndarray]

    def matrix(self) -> StoredMatrix:
        """Return the matrix: codes where groups of equal size express it, or else numbers.

        Raises:
            ExportError: zero points or groups of columns contradict the settings, or are missing.
        """
        has_zeros, reorders = self._has_zeros(), self._reorders()
        extra = [part for part, there in ((ZEROS, self.parts.has(ZEROS)), (GROUPS, self.parts.has(GROUPS))) if there]
        names, shape = self.parts.names(*self.names, *extra), self.tile.shape
        rows = QuantizedRows(
            bits=max(self.scheme.bits, 2),
            group_size=self.tile.columns,
            load=partial(self._load_ordered, reorders),
            zero_points=self.zeros if has_zeros else None,
            halves=self.parts.has_halves(SCALE),
            order=self._order if reorders else None,
        )
        rows = narrow(self.parts, rows)
        bits, offset = min(self.scheme.bits, rows.bits), " with zero points" if has_zeros else ""
        told = f"int{bits} {self.tile.told}{offset}{', reordered' if reorders else ''}"
        if not self.tile.makes_groups:
            return matrix_of_numbers(names, shape, told, self._read_ragged, RAGGED)
        if reorders and not self._is_even():
            return matrix_of_numbers(names, shape, told, partial(self._read_unequal, has_zeros), UNEQUAL)
        return matrix_of_codes(names, shape, told, rows)

    def _has_zeros(self) -> bool:
        """Whether codes have zero points; stored ones of codes that are symmetric must all be 0."""
        where = f"{self.parts.source.path}: tensor {self.parts.name(ZEROS)!r}"
        if not self.scheme.is_symmetric and not self.parts.has(ZEROS):
            raise ExportError(
                f"{where} is missing, but {self.scheme.where} has symmetric false; download the checkpoint again"
            )
        if self.parts.has(ZEROS) and self.scheme.is_symmetric and self.zeros().any():
            raise ExportError(
                f"{where} got zero points other than 0, but {self.scheme.where} has symmetric true; the settings belong to "
                "another checkpoint"
            )
        if not self.scheme.is_symmetric and not self.tile.makes_groups:
            raise ExportError(
                f"{where} got zero points in blocks that do not divide the {self.tile.shape[1]} columns, expected none"
            )
        return not self.scheme.is_symmetric

    def _reorders(self) -> bool:
        """Whether the columns of a group are not all neighbours."""
        if not self.parts.has(GROUPS):
            return False
        k, groups = self.tile.shape[1], self.tile.counts[1]
        self.parts.check(GROUPS, ((k,),), "I32", "I64")
        found = self._groups()
        where = f"{self.parts.stored(GROUPS).file}: tensor {self.parts.name(GROUPS)!r}"
        if (found == -1).any():  # never set: the columns are in their order
            return False
        if found.size and not 0 <= int(found.min()) <= int(found.max()) < groups:
            raise ExportError(
                f"{where} got groups {int(found.min())} to {int(found.max())}, expected 0 to {groups - 1}; the file is damaged"
            )
        natural = np.array_equal(found, np.arange(k) // self.tile.columns)
        if not natural and not (self.scheme.is_reordered and self.scheme.strategy == "group"):
            raise ExportError(
                f"{where} got columns in another order, but {self.scheme.where} does not say so with actorder group; the "
                "settings belong to another checkpoint"
            )
        return not natural

    def _groups(self) -> np.ndarray:
        """The group of each column [k]."""
        return self.parts.array(GROUPS)

    def _order(self) -> np.ndarray:
        return np.argsort(self._groups(), kind="stable").astype(np.int32)

    def _is_even(self) -> bool:
        counted = np.bincount(self._groups(), minlength=self.tile.counts[1])
        return bool((counted == self.tile.columns).all())

    def _scales(self) -> np.ndarray:
        return self.tile.by_row(self.parts.finite(SCALE))

    def _load_ordered(self, reorders: bool) -> tuple[np.ndarray, np.ndarray]:
        codes = self.load()
        return codes[:, self._order()] if reorders else codes, self._scales()

    def _read_unequal(self, has_zeros: bool) -> np.ndarray:
        numbers: np.ndarray = self.load().astype(np.float32)
        groups = self._groups()
        scales, zeros = self._scales(), self.zeros() if has_zeros else None
        for column, group in enumerate(groups):
            if zeros is not None:
                numbers[:, column] -= zeros[:, group]
            numbers[:, column] *= scales[:, group]
        return numbers

    def _read_ragged(self) -> np.ndarray:
        return self.tile.scale(self.load().astype(np.float32), self.parts.finite(SCALE))
