"""A file of activations, one tensor a batch, so that memory need not hold them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from enginewright.exporters.calibration.atomic_files import disk_errors


class ActivationFile:
    """A file of tensors of one type, appended in the order of batches and read by their numbers.

    `BlockWalk` creates one for the states that enter a block, `ActivationStream` those of kept inputs and outputs. After
    `restart` the file is written over, so that a file that is used again and again does not grow.

    checksum: of the appended bytes, only when `checked`; `append` and `attach` set it.
    """

    def __init__(self, path: Path, dtype: torch.dtype, device: torch.device, *, checked: bool = False) -> None:
        self.path = path
        self.checksum = 0
        self._checked = checked
        self._dtype, self._device = dtype, device
        self._file: FileIO | None = None
        self._shapes: list[tuple[int, ...]] = []
        self._offsets: list[int] = [0]

    def __len__(self) -> int:
        return len(self._shapes)

    def restart(self) -> None:
        """Forget all tensors; the next `append` writes the first one."""
        self._shapes, self._offsets, self.checksum = [], [0], 0

    def attach(self, shapes: Sequence[tuple[int, ...]], checksum: int) -> bool:
        """Take over the file of an earlier run, with tensors of these shapes; False when its size or checksum is another."""
        self.restart()
        if not self.path.is_file() or self.path.stat().st_size != sum(map(self._size, shapes)):
            return False
        for shape in shapes:
            self._add_shape(shape)
            self.checksum = zlib.crc32(_bytes(self.read(len(self) - 1).cpu()), self.checksum)
        if self.checksum != checksum:
            self.restart()
        return len(self) > 0

    def append(self, tensor: torch.Tensor) -> None:
        """Write the tensor of the next batch."""
        content = _bytes(tensor.detach().to("cpu", self._dtype).contiguous())
        with disk_errors(self.path.parent):
            file = self._open()
            file.seek(self._offsets[-1])
            left = content
            if self._checked:
                self.checksum = zlib.crc32(content, self.checksum)
            while left:
                left = left[file.write(left) :]
        self._add_shape(tuple(tensor.shape))

    def read(self, number: int) -> torch.Tensor:
        """The tensor of batch `number`, on the device."""
        tensor = torch.empty(self._shapes[number], dtype=self._dtype)
        with disk_errors(self.path.parent):
            file = self._open()
            file.seek(self._offsets[number])
            left = _bytes(tensor)
            while left:
                count = file.readinto(left)
                if not count:
                    raise OSError(f"{self.path.name} ends too early")
                left = left[count:]
        return tensor.to(self._device)

    def close(self) -> None:
        """Close the file, and cut off what an earlier, longer use of it left after the last tensor."""
        if self._file is not None:
            self._file.truncate(self._offsets[-1])
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Close the file and delete it."""
        self.close()
        self.restart()
        self.path.unlink(missing_ok=True)

    def _add_shape(self, shape: tuple[int, ...]) -> None:
        self._shapes.append(tuple(shape))
        self._offsets.append(self._offsets[-1] + self._size(shape))

    def _size(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self._dtype.itemsize

    def _open(self) -> FileIO:
        if self._file is None:
            self._file = FileIO(self.path, "r+" if self.path.exists() else "w+")
        return self._file


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a tensor, without a copy."""
    flat: Any = tensor.flatten().view(torch.uint8).numpy()
    return memoryview(flat)
