"""The quantised Linear weights that checkpoint formats write, and the modules that stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from enginewright.exporters.source.formats.safetensors import DTYPES
from enginewright.exporters.weights.block_codes import stored_bits
from enginewright.exporters.weights.weight import CodeForm, QuantizedRows
from enginewright.runtime.errors import ExportError

Tensor = tuple[str, np.ndarray]  # (safetensors type, values); the values of bfloat16 are its bits as uint16


@dataclass(frozen=True, kw_only=True)
class QuantizedLinear:
    """A quantised weight; the writer creates it.

    module: name of its module in the source checkpoint.
    shape: (n, k).
    dtype: of its tensor in the source checkpoint ("BF16").
    rows: codes and scales.
    group_size: columns that share a scale; None: one scale a row.
    """

    module: str
    shape: tuple[int, int]
    dtype: str
    rows: QuantizedRows
    group_size: int | None

    @property
    def bits(self) -> int:
        """Bits of a code as stored, 4 or 8."""
        return stored_bits(self.rows.bits)

    @property
    def is_symmetric(self) -> bool:
        """Whether there are no zero points."""
        return self.rows.zero_points is None


def find_groups(weights: Iterable[tuple[tuple[int, int], QuantizedRows]]) -> set[int]:
    """The group sizes of which some row has several groups.

    A row that is one group of such a size counts as grouped; a row that is one group of any other size does not.
    """
    return {rows.group_size for shape, rows in weights if rows.group_size < shape[1]}


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Modules that stay as they are; the writer creates it.

    modules: names of Linear layers and routers.
    experts: whether the model has experts.
    """

    modules: tuple[str, ...]
    experts: bool


@dataclass(frozen=True, kw_only=True)
class Description:
    """The JSON that describes quantised weights; `CheckpointFormat.describe` creates it.

    quantization_config: goes into config.json.
    files: other JSON files by name.
    """

    quantization_config: dict[str, Any]
    files: dict[str, dict[str, Any]]


class CheckpointFormat(Protocol):
    """A format of quantised weights; each is a module."""

    def check_form(self, form: CodeForm) -> None:
        """Raise UnsupportedError where the format cannot hold codes of this form, before they are computed."""
        ...

    def describe(self, linears: Sequence[QuantizedLinear], left_out: LeftOut, producer: dict[str, str]) -> Description:
        """Return the JSON files' content; UnsupportedError where the format cannot hold the weights.

        producer: name and version.
        """
        ...

    def store(self, linear: QuantizedLinear) -> dict[str, Tensor]:
        """Return the tensors by the last part of their names ("weight_packed"); computes the weight, so it is called once."""
        ...


def narrow_scales(scales: np.ndarray, dtype: str) -> Tensor:
    """Return `scales` float32 as `dtype` ("BF16", "F16") if that changes none of them, else as they are."""
    if dtype in ("BF16", "F16"):
        exact = torch.from_numpy(np.ascontiguousarray(scales))
        narrow = exact.to(DTYPES[dtype])
        if torch.equal(narrow.to(torch.float32), exact):
            return dtype, narrow.view(torch.uint16).numpy()
    return "F32", scales.astype(np.float32, copy=False)


def to_tensor(values: np.ndarray, dtype: str, name: str) -> Tensor:
    """Return `values` float32 rounded to `dtype`.

    Raises:
        ExportError: a value is too large for `dtype`.
    """
    rounded = torch.from_numpy(np.ascontiguousarray(values)).to(DTYPES[dtype])
    if not bool(rounded.isfinite().all()):
        raise ExportError(f"{name}: got values up to {np.abs(values).max():.3g}, which {dtype} does not hold")
    return dtype, (rounded.view(torch.uint16) if dtype == "BF16" else rounded).numpy()
