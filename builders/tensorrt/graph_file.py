"""Writes rewritten graphs to files; derived weights are computed while they are written, some rows at a time.

So no derived weight is ever whole in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

STEP_BYTES = 1 << 24


class RowsTensor(ir.LazyTensor):
    """A matrix [n, k] that is computed from other tensors; created by passes.

    rows: `rows(begin, end)` computes rows begin .. end - 1 anew at each call, in their stored form; for INT4 that is two
        elements a byte, the earlier one in the low nibble.
    """

    def __init__(
        self, name: str, dtype: ir.DataType, shape: tuple[int, int], rows: Callable[[int, int], np.ndarray]
    ) -> None:
        super().__init__(lambda: self._make(), dtype, ir.Shape(shape), name=name)  # a bound method's repr never ends
        self.rows = rows

    def _make(self) -> ir.TensorProtocol:
        n, k = self.shape.numpy()
        stored = np.ascontiguousarray(self.rows(0, n))
        if self.dtype is ir.DataType.INT4:
            return ir.PackedTensor(
                stored.view(np.uint8).reshape(-1), self.dtype, shape=ir.Shape((n, k)), name=self.name
            )
        stored = stored.view(np.int8) if self.dtype is ir.DataType.INT8 else stored
        return ir.Tensor(stored, dtype=self.dtype, shape=ir.Shape((n, k)), name=self.name)


def data_path(path: Path) -> Path:
    """The file that holds the RowsTensors of the graph at `path`."""
    return path.with_name(f"{path.name}.data")


def save_rewritten(model: ir.Model, path: Path) -> None:
    """Write `model` to `path`, and its RowsTensors, if it has any, to `data_path(path)`.

    Weights that no pass has changed still point into their old file, which lies next to `path`, too.
    """
    derived = [v for v in model.graph.initializers.values() if isinstance(v.const_value, RowsTensor)]
    if derived:
        with data_path(path).open("wb") as file:
            for value in derived:
                assert isinstance(value.const_value, RowsTensor)
                value.const_value = _write(file, value.const_value, data_path(path))
    ir.save(model, path)


def move_rewritten(model: ir.Model, source: Path, target: Path) -> list[Path]:
    """Move the files that `save_rewritten` wrote from `source` to `target` in the same folder; return their new paths."""
    old, new = data_path(source), data_path(target)
    files = [target]
    if old.exists():
        for value in model.graph.initializers.values():
            found = value.const_value
            if isinstance(found, ir.ExternalTensor) and found.location == old.name:
                value.const_value = ir.ExternalTensor(
                    new.name,
                    found.offset,
                    found.length,
                    found.dtype,
                    shape=found.shape,
                    name=found.name,
                    base_dir=new.parent,
                )
        os.replace(old, new)
        files.append(new)
    ir.save(model, source)
    os.replace(source, target)
    return files


def _write(file: BinaryIO, tensor: RowsTensor, path: Path) -> ir.ExternalTensor:
    file.write(bytes(-file.tell() % 64))
    begin, (n, k) = file.tell(), tensor.shape.numpy()
    step = max(1, STEP_BYTES // max(k * 4, 1))
    for row in range(0, n, step):
        file.write(np.ascontiguousarray(tensor.rows(row, min(row + step, n))).tobytes())
    length = file.tell() - begin
    return ir.ExternalTensor(
        path.name, begin, length, tensor.dtype, shape=ir.Shape((n, k)), name=tensor.name or "", base_dir=path.parent
    )
