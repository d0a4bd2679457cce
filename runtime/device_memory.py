"""Memory of a CUDA device for a session: buffers that live as long as it, filled and read through pinned memory."""

from __future__ import annotations

import ctypes
import math
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.cuda import CudaLibrary


@dataclass(frozen=True)
class DeviceBuffer:
    """`shape` elements of `dtype` at `address` on the device."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


class DeviceMemory:
    """A stream and what is allocated for it; everything is given back together, by `close` or when it is collected."""

    def __init__(self, library: CudaLibrary) -> None:
        self.library = library
        self.stream = library.create_stream()
        self._addresses: list[tuple[int, bool]] = []
        self._close = weakref.finalize(self, _give_back, library, self.stream, self._addresses)

    def buffer(self, shape: tuple[int, ...], dtype: Any) -> DeviceBuffer:
        """Zeros on the device.

        Raises:
            MemoryError: says what was needed and what is free.
        """
        kind = np.dtype(dtype)
        return DeviceBuffer(self._allocate(math.prod(shape) * kind.itemsize, host=False), shape, kind)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Zeros of the host that the device copies without help."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        raw = (ctypes.c_byte * size).from_address(self._allocate(size, host=True))
        return np.frombuffer(raw, kind).reshape(shape)

    def upload(self, to: DeviceBuffer, source: NDArray[Any]) -> None:
        """Start copying pinned `source` to the beginning of `to`."""
        self.library.copy(to.address, source.ctypes.data, source.nbytes, self.stream)

    def download(self, to: NDArray[Any], source: DeviceBuffer) -> None:
        """Start copying as much of `source` as pinned `to` holds."""
        self.library.copy(to.ctypes.data, source.address, to.nbytes, self.stream)

    def synchronize(self) -> None:
        """Wait for everything that was started."""
        self.library.synchronize(self.stream)

    def close(self) -> None:
        """Give everything back; arrays of `pinned` are gone then."""
        self._close()

    def _allocate(self, size: int, *, host: bool) -> int:
        address = self.library.allocate(size, host=host)
        self._addresses.append((address, host))
        return address


def _give_back(library: CudaLibrary, stream: int, addresses: list[tuple[int, bool]]) -> None:
    library.synchronize(stream)
    for address, host in addresses:
        library.free(address, host=host)
    library.destroy_stream(stream)
