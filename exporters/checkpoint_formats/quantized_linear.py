"""What the checkpoint formats write: quantised Linear weights, and the modules that stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from enginewright.exporters.source.checkpoint import DTYPES
from enginewright.exporters.weights.block_codes import stored_bits
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.errors import ExportError

Tensor = tuple[str, np.ndarray]  # safetensors type, values: of bfloat16 their bits as uint16


@dataclass(frozen=True, kw_only=True)
class QuantizedLinear:
    """A quantised weight [n, k]: name of its module and dtype of its tensor ("BF16") in the source checkpoint.

    group_size: None is one scale a row.
    """

    module: str
    shape: tuple[int, int]
    dtype: str
    rows: QuantizedRows
    group_size: int | None

    @property
    def bits(self) -> int:
        """As stored: 4 or 8."""
        return stored_bits(self.rows.bits)


def find_groups(weights: Iterable[tuple[tuple[int, int], QuantizedRows]]) -> set[int]:
    """The sizes of groups that some row has several of: a row of one such group counts as grouped, any other not."""
    return {rows.group_size for shape, rows in weights if rows.group_size < shape[1]}


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Modules that stay as they are: names of Linear layers and routers, and whether there are experts."""

    modules: tuple[str, ...]
    experts: bool


@dataclass(frozen=True, kw_only=True)
class Description:
    """config.json's quantization_config, and other JSON files by name."""

    quantization_config: dict[str, Any]
    files: dict[str, dict[str, Any]]


class CheckpointFormat(Protocol):
    """How quantised weights are laid down; one module each."""

    def describe(self, linears: Sequence[QuantizedLinear], left_out: LeftOut, producer: dict[str, str]) -> Description:
        """What the JSON files say; UnsupportedError where the format cannot hold them. producer: name and version."""
        ...

    def store(self, linear: QuantizedLinear) -> dict[str, Tensor]:
        """Tensors by the last part of their name ("weight_packed"); the weight is made here, once."""
        ...


def narrow_scales(scales: np.ndarray, dtype: str) -> Tensor:
    """`scales` float32 as `dtype` ("BF16", "F16") if that changes none of them, else as they are."""
    if dtype in ("BF16", "F16"):
        exact = torch.from_numpy(np.ascontiguousarray(scales))
        narrow = exact.to(DTYPES[dtype])
        if torch.equal(narrow.to(torch.float32), exact):
            return dtype, narrow.view(torch.uint16).numpy()
    return "F32", scales.astype(np.float32, copy=False)


def to_tensor(values: np.ndarray, dtype: str, name: str) -> Tensor:
    """`values` float32 rounded to `dtype`.

    Raises:
        ExportError: one is too large for it.
    """
    rounded = torch.from_numpy(np.ascontiguousarray(values)).to(DTYPES[dtype])
    if not bool(rounded.isfinite().all()):
        raise ExportError(f"{name}: got values up to {np.abs(values).max():.3g}, which {dtype} does not hold")
    return dtype, (rounded.view(torch.uint16) if dtype == "BF16" else rounded).numpy()
