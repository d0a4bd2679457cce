"""The stored tensors that a matrix of codes is made of: found and checked by their headers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from enginewright.exporters.source.quantized.finite import check_finite
from enginewright.exporters.source.quantized.quantized_folder import (
    QuantizedFolder,
    StoredMatrix,
    check_part,
    where_missing,
)
from enginewright.exporters.source.tensor_source import StoredTensor
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.errors import ExportError

SCALE_TYPES = ("F32", "F16", "BF16")
"""safetensors' names of the types that scales have where they are no codes themselves."""
_CODES = ("U8", "I8", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class ModuleParts:
    """The stored tensors of one module; a format creates it for each module that it reads.

    source: the opened directory.
    module: name of the module, as "model.layers.0.mlp.up_proj".
    code_bits: bits of its whole codes where they are stored in more; 0: as they are stored.
    """

    source: QuantizedFolder
    module: str
    code_bits: int = 0

    def name(self, part: str) -> str:
        """The full name of the tensor `part`, as "weight_scale"."""
        return f"{self.module}.{part}"

    def has(self, part: str) -> bool:
        """Whether the checkpoint has that tensor."""
        return self.name(part) in self.source.files.tensors

    def stored(self, part: str) -> StoredTensor:
        """What the header says of the tensor `part`.

        Raises:
            ExportError: it is missing.
        """
        if not self.has(part):
            where = where_missing(self.source, self.name(part))
            raise ExportError(
                f"{where}: tensor {self.name(part)!r} is missing, but others of its matrix are there; download the checkpoint again"
            )
        return self.source.files.tensors[self.name(part)]

    def matrix(self, part: str, *dtypes: str) -> tuple[int, int]:
        """The shape of the tensor `part`, checked to have two axes and one of the types `dtypes`.

        Raises:
            ExportError: it has not, or is missing.
        """
        stored = self.stored(part)
        if len(stored.shape) != 2 or stored.dtype not in dtypes:
            raise ExportError(
                f"{stored.file}: tensor {self.name(part)!r} got {stored.dtype} {list(stored.shape)}, expected "
                f"{' or '.join(dtypes)} with two axes; the file is damaged, or the settings belong to another checkpoint"
            )
        return stored.shape[0], stored.shape[1]

    def check(self, part: str, shapes: tuple[tuple[int, ...], ...], *dtypes: str) -> None:
        """Raise ExportError unless the tensor `part` has one of the shapes, of which the first is the usual one, and types."""
        actual = self.stored(part).shape
        check_part(self.source, self.name(part), actual if actual in shapes else shapes[0], *dtypes)

    def array(self, part: str) -> np.ndarray:
        """The tensor `part` as it is stored; types that numpy lacks become float32."""
        return self.source.array(self.name(part))

    def finite(self, part: str) -> np.ndarray:
        """The tensor `part` as float32.

        Raises:
            ExportError: it holds NaN or infinity.
        """
        values: np.ndarray = self.source.files.read(self.name(part)).numpy()
        return self.check_finite(values, part)

    def has_halves(self, part: str) -> bool:
        """Whether the tensor `part` is of IEEE halves."""
        return self.source.has_halves(self.name(part))

    def check_finite(self, values: np.ndarray, part: str) -> np.ndarray:
        """Return `values`, which the tensor `part` stands for; ExportError where one is NaN or infinity."""
        return check_finite(values, self.stored(part).file, self.name(part))

    def names(self, *parts: str) -> tuple[str, ...]:
        """The full names of several tensors."""
        return tuple(self.name(part) for part in parts)


def modules_of_codes(source: QuantizedFolder) -> list[str]:
    """The modules whose "weight" has a type of codes, whether or not the other tensors of the matrix are there."""
    weights = (
        name for name, stored in source.files.tensors.items() if stored.dtype in _CODES and len(stored.shape) == 2
    )
    return [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]


def matrix_of_codes(parts: tuple[str, ...], shape: tuple[int, int], told: str, rows: QuantizedRows) -> StoredMatrix:
    """Return the matrix [n, k] whose codes are `rows`.

    parts: full names of the stored tensors.
    told: name of the type of codes.
    """
    return StoredMatrix(
        parts=parts,
        shape=shape,
        codes_name=told,
        read=lambda _: torch.from_numpy(np.ascontiguousarray(rows.restore())),
        codes=lambda _: rows,
    )


def matrix_of_numbers(
    parts: tuple[str, ...], shape: tuple[int, int], told: str, read: Callable[[], np.ndarray], reason: str
) -> StoredMatrix:
    """Return the matrix [n, k] that `read` makes of stored codes as float32, because of `reason`, a phrase."""
    return StoredMatrix(parts=parts, shape=shape, codes_name=told, read=partial(_as_tensor, read), restored=reason)


def _as_tensor(read: Callable[[], np.ndarray], _: int | None) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(read()))
