"""Matrices of integers in groups along their inputs, each group with a scale and a zero point: what GPTQ and AWQ store."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from enginewright.exporters.source.formats.safetensors import CONFIG
from enginewright.exporters.source.json_file import read_json
from enginewright.exporters.source.quantized.finite import check_finite
from enginewright.exporters.source.quantized.packing import center
from enginewright.exporters.source.quantized.quantized_folder import QuantizedFolder, StoredMatrix
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.errors import ExportError, UnsupportedError

SCALES = ("F16", "BF16", "F32")
"""Safetensors' names of the types that scales may have."""
_TRANSPOSED = ("gpt2", "openai-gpt")
"""Model types whose matrices are [inputs, outputs] in checkpoints of numbers, unlike those that are quantised."""


@dataclass(frozen=True, kw_only=True)
class GroupedIntegers:
    """A matrix [n, k], whose number i, j is scales[g, i] * (codes[i, j] - zero_points[g, i]), g the group of column j.

    A format creates it.

    where: the file of the scales, for error messages.
    parts: names of the stored tensors: codes, zero points, scales, and groups if they are stored.
    shape: n and k.
    bits: of a code.
    group_size: columns that share a scale.
    codes: returns codes [n, k] uint8, counted from the lowest.
    scales: returns scales [k / group_size, n] float32.
    zero_points: returns zero points [k / group_size, n] uint8, counted as codes are.
    halves: whether scales are stored as halves.
    groups: returns the group [k] int32 of each column; None: column j is in group j // group_size.
    """

    where: Path
    parts: tuple[str, ...]
    shape: tuple[int, int]
    bits: int
    group_size: int
    codes: Callable[[], np.ndarray]
    scales: Callable[[], np.ndarray]
    zero_points: Callable[[], np.ndarray]
    halves: bool
    groups: Callable[[], np.ndarray] | None = None

    def describe(self, method: str) -> StoredMatrix:
        """Return the tensor of the model that these are; `method` begins the name of the type of codes."""
        size = "whole rows" if self.group_size == self.shape[1] else f"groups of {self.group_size}"
        return StoredMatrix(
            parts=self.parts,
            shape=self.shape,
            codes_name=f"{method} of {self.bits} bits in {size}",
            read=lambda part: torch.from_numpy(self.restore()),
            codes=lambda part: self.rows(),
        )

    def rows(self) -> QuantizedRows | None:
        """Return the matrix with columns of a group next to each other, without zero points if all are in the middle.

        None where groups are of different sizes.

        Raises:
            ExportError: a group does not exist.
        """
        groups = self._checked_groups()
        if groups is not None and (np.bincount(groups, minlength=self._count) != self.group_size).any():
            return None
        order: np.ndarray | None = None
        if groups is not None and (np.diff(groups) < 0).any():
            order = np.argsort(groups, kind="stable").astype(np.int32)

        def load() -> tuple[np.ndarray, np.ndarray]:
            codes = center(self.codes(), self.bits)
            return codes if order is None else codes[:, order], np.ascontiguousarray(self._finite_scales().T)

        rows = QuantizedRows(
            bits=self.bits,
            group_size=self.group_size,
            load=load,
            halves=self.halves,
            order=None if order is None else lambda: order,
        )
        return dataclasses.replace(rows, zero_points=self._centered) if self._centered().any() else rows

    def restore(self) -> np.ndarray:
        """Return the numbers: float32 [n, k]."""
        rows: np.ndarray = self.codes().astype(np.float32)
        scales, zero_points, groups = self._finite_scales().T, self.zero_points().T, self._checked_groups()
        for group in range(scales.shape[1]):
            columns = (
                slice(group * self.group_size, (group + 1) * self.group_size) if groups is None else groups == group
            )
            rows[:, columns] = (rows[:, columns] - zero_points[:, group, None]) * scales[:, group, None]
        return rows

    def _centered(self) -> np.ndarray:
        """Zero points around 0: int8 [n, k / group_size]."""
        return np.ascontiguousarray(center(self.zero_points(), self.bits).T)

    def _finite_scales(self) -> np.ndarray:
        return check_finite(self.scales(), self.where, self.parts[2])

    def _checked_groups(self) -> np.ndarray | None:
        if self.groups is None:
            return None
        groups, count = self.groups(), self._count
        if groups.size and not 0 <= groups.min() <= groups.max() < count:
            wrong = groups[(groups < 0) | (groups >= count)][0]
            raise ExportError(
                f"{self.where}: tensor {self.parts[-1]!r} got group {wrong}, expected 0 .. {count - 1}; the checkpoint is damaged"
            )
        return groups

    @property
    def _count(self) -> int:
        return self.shape[1] // self.group_size


def check_family(source: QuantizedFolder) -> None:
    """Raise UnsupportedError for a model whose matrices are transposed in checkpoints of numbers."""
    family = read_json(source.path / CONFIG).get("model_type")
    if family in _TRANSPOSED:
        raise UnsupportedError(
            f"{source.path}: got quantised weights of {family}, whose checkpoints keep matrices as [inputs, outputs]; pass the "
            "unquantised checkpoint"
        )


def read_choice(source: QuantizedFolder, settings: Mapping[str, Any], key: str, known: tuple[int, ...]) -> int:
    """Return the setting `key`, one of `known`.

    Raises:
        UnsupportedError: it is another one, or missing.
    """
    value = settings.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value not in known:
        raise UnsupportedError(
            f"{source.where_set}.{key} got {value!r}, expected {' or '.join(map(str, known))}; pass the "
            "unquantised checkpoint"
        )
    return value


def read_group_size(source: QuantizedFolder, settings: Mapping[str, Any], module: str, k: int) -> int:
    """Return the columns of a group of a matrix with k columns, of which -1 makes one group.

    Raises:
        ExportError: it is no size that divides k.
    """
    size = settings.get("group_size")
    if size == -1 and not isinstance(size, bool):
        return k
    if isinstance(size, bool) or not isinstance(size, int) or size <= 0 or k % size:
        raise ExportError(
            f"{source.where_set}.group_size got {size!r}, expected -1 or a divisor of the {k} inputs of "
            f"{module!r}; the file belongs to another checkpoint"
        )
    return size


def described_form(bits: int, group_size: int) -> str:
    """The settings that the shapes of a matrix's parts follow from, as `check_part` names them."""
    return f"{bits} bits in groups of {group_size}"


def find_modules(source: QuantizedFolder) -> list[str]:
    """Return the names of the modules that have a tensor "qweight"."""
    return [name.removesuffix(".qweight") for name in source.files.tensors if name.endswith(".qweight")]


def check_words(source: QuantizedFolder, name: str) -> tuple[int, int]:
    """Return the shape of a stored tensor of words that hold codes.

    Raises:
        ExportError: it is no matrix of int32.
    """
    stored = source.files.tensors[name]
    if stored.dtype != "I32" or len(stored.shape) != 2:
        raise ExportError(
            f"{stored.file}: tensor {name!r} got {stored.dtype} {list(stored.shape)}, expected a matrix of I32; {CONFIG} "
            "belongs to another checkpoint, or it is packed in another way"
        )
    return stored.shape[0], stored.shape[1]


def pick(source: QuantizedFolder, name: str) -> Callable[[], np.ndarray]:
    """Return a function that reads the stored tensor `name`, in its own type; bfloat16 becomes float32."""
    return functools.partial(source.array, name)
