"""Tensors that a pass derives from others and nobody holds: they are made when the graph is saved, some rows at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

STEP_BYTES = 1 << 24


class RowsTensor(ir.LazyTensor):
    """A matrix [n, k] whose `rows(begin, end)` are made anew at each call.

    They come as they are stored: of INT4, two to a byte, the earlier in the low nibble.
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
    """Where the RowsTensors of a graph at `path` lie."""
    return path.with_name(f"{path.name}.data")


def save_rewritten(model: ir.Model, path: Path) -> None:
    """Write `model` to `path` and its RowsTensors, if it has any, to the file `data_path` names.

    Weights that no pass has changed go on pointing into the file they lie in, which lies beside `path` too.
    """
    derived = [v for v in model.graph.initializers.values() if isinstance(v.const_value, RowsTensor)]
    if derived:
        with data_path(path).open("wb") as file:
            for value in derived:
                assert isinstance(value.const_value, RowsTensor)
                value.const_value = _write(file, value.const_value, data_path(path))
    ir.save(model, path)


def move_rewritten(model: ir.Model, source: Path, target: Path) -> list[Path]:
    """Move what `save_rewritten` wrote of `model` from `source` to `target` in one folder; return the files there."""
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
