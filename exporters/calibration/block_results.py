"""The codes and scales of one block's layers in a safetensors file, which is read a layer at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from enginewright.exporters.calibration.atomic_files import replace_file
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.errors import ExportError


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """The parameter of a linear layer, and the form in which it is quantised; `calibrate` creates it.

    name: of the parameter.
    rows: n, the outputs of the layer.
    columns: k, its inputs.
    bits: of a code, 2 to 8.
    group_size: columns that share a scale, a divisor of k.
    """

    name: str
    rows: int
    columns: int
    bits: int
    group_size: int

    @property
    def packed_columns(self) -> int:
        """Bytes of a row of codes: two codes a byte, low nibble first, when codes have four bits or fewer; else one."""
        return (self.columns + 1) // 2 if self.bits <= 4 else self.columns

    @property
    def groups(self) -> int:
        """Number of scales in a row."""
        return self.columns // self.group_size


def save_block(
    path: Path, layers: Sequence[QuantizedLayer], codes: Mapping[str, torch.Tensor], scales: Mapping[str, torch.Tensor]
) -> None:
    """Write the codes[n, k] int8 and scales[n, groups] float32 of a block's layers."""
    tensors = {}
    for layer in layers:
        tensors[f"{layer.name}.codes"] = _pack(codes[layer.name].cpu(), layer)
        tensors[f"{layer.name}.scales"] = scales[layer.name].to("cpu", torch.float32).contiguous()
    replace_file(path, save(tensors))


def open_block(path: Path, layers: Sequence[QuantizedLayer]) -> dict[str, QuantizedRows]:
    """Return the layers that `save_block` wrote, by parameter; only their shapes are read now.

    Raises:
        ExportError: the file is damaged, or holds other layers.
    """
    expected: dict[str, tuple[str, list[int]]] = {}
    for layer in layers:
        expected[f"{layer.name}.codes"] = ("U8" if layer.bits <= 4 else "I8", [layer.rows, layer.packed_columns])
        expected[f"{layer.name}.scales"] = ("F32", [layer.rows, layer.groups])
    try:
        with safe_open(path, framework="pt") as f:
            found = {name: (f.get_slice(name).get_dtype(), list(f.get_slice(name).get_shape())) for name in f.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as e:
        raise _damaged(path, str(e)) from e
    if found != expected:
        names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise _damaged(path, f"{names[0]}: got {found.get(names[0])}, expected {expected.get(names[0])}")
    return {
        layer.name: QuantizedRows(bits=layer.bits, group_size=layer.group_size, load=partial(_load, path, layer))
        for layer in layers
    }


def _load(path: Path, layer: QuantizedLayer) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    try:
        with safe_open(path, framework="pt") as f:
            packed, scales = f.get_tensor(f"{layer.name}.codes"), f.get_tensor(f"{layer.name}.scales")
            codes = _unpack(packed, layer)
    except (SafetensorError, OSError) as e:
        raise _damaged(path, str(e)) from e
    if not bool(scales.isfinite().all()):
        raise _damaged(path, f"{layer.name}: a scale is NaN or infinite")
    return codes.numpy(), scales.numpy().copy()


def _damaged(path: Path, reason: str) -> ExportError:
    return ExportError(f"{path}: damaged ({reason}); delete this file and run again: its block is computed anew")


def _pack(codes: torch.Tensor, layer: QuantizedLayer) -> torch.Tensor:
    if layer.bits > 4:
        return codes.contiguous()
    nibbles = torch.zeros(layer.rows, 2 * layer.packed_columns, dtype=torch.uint8)
    nibbles[:, : layer.columns] = codes.contiguous().view(torch.uint8) & 15
    return nibbles[:, ::2] | (nibbles[:, 1::2] << 4)


def _unpack(packed: torch.Tensor, layer: QuantizedLayer) -> torch.Tensor:
    """Codes int8 [n, k], in memory of their own."""
    if layer.bits > 4:
        return packed.clone()
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)[:, : layer.columns]
    return ((nibbles ^ 8).to(torch.int8) - 8).contiguous()
