"""Device memory of a session: buffers that live as long as the session, filled and read through pinned memory."""

from __future__ import annotations

import ctypes
import math
import weakref
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class DeviceLibrary(Protocol):
    """Memory, streams and copies of a device; implemented by `CudaLibrary` of `plugins` and by `CudaRuntime`."""

    def allocate(self, bytes: int, *, host: bool = False) -> int:
        """Return the address of zeroed memory on the device, or of pinned memory on the host.

        Raises:
            MemoryError: there is too little memory.
        """
        ...

    def free(self, address: int, *, host: bool = False) -> None:
        """Give memory back that `allocate` returned."""
        ...

    def free_bytes(self) -> int:
        """Return the bytes of device memory that are free."""
        ...

    def create_stream(self) -> int:
        """Create a stream."""
        ...

    def destroy_stream(self, stream: int) -> None:
        """End a stream."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait for everything that was started on `stream`."""
        ...

    def copy(self, to: int, source: int, bytes: int, stream: int) -> None:
        """Start a copy, in order with everything else on `stream`."""
        ...

    def copy_pieces(
        self, to: int, to_pitch: int, source: int, source_pitch: int, width: int, count: int, stream: int
    ) -> None:
        """Start a copy of `count` pieces of `width` bytes, `source_pitch` bytes apart, to places `to_pitch` bytes apart."""
        ...


@dataclass(frozen=True)
class DeviceBuffer:
    """An array on the device: its address, shape and type; created by `DeviceMemory.buffer`."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class DeviceMemory:
    """A stream, and the memory that is allocated for it; created by a session or graph.

    All of it is given back together, by `close` or when this object is collected.
    """

    def __init__(self, library: DeviceLibrary) -> None:
        self.library = library
        self.stream = library.create_stream()
        self._addresses: list[tuple[int, bool]] = []
        self._close = weakref.finalize(self, _give_back, library, self.stream, self._addresses)

    def buffer(self, shape: tuple[int, ...], dtype: Any) -> DeviceBuffer:
        """Return a buffer of zeros on the device.

        Raises:
            MemoryError: there is too little memory; the text says what was needed and what is free.
        """
        kind = np.dtype(dtype)
        return DeviceBuffer(self._allocate(math.prod(shape) * kind.itemsize, host=False), shape, kind)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an array of zeros in pinned memory of the host, which the device can copy without the CPU's help."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        raw = (ctypes.c_byte * size).from_address(self._allocate(size, host=True))
        return np.frombuffer(raw, kind).reshape(shape)

    def upload(self, to: DeviceBuffer, source: NDArray[Any]) -> None:
        """Start a copy of `source`, in pinned memory, to the beginning of `to`."""
        self.library.copy(to.address, source.ctypes.data, source.nbytes, self.stream)

    def download(self, to: NDArray[Any], source: DeviceBuffer) -> None:
        """Start a copy to `to`, in pinned memory, of as much of `source` as fits there."""
        self.library.copy(to.ctypes.data, source.address, to.nbytes, self.stream)

    def synchronize(self) -> None:
        """Wait for everything that was started."""
        self.library.synchronize(self.stream)

    def close(self) -> None:
        """Give everything back; the arrays of `pinned` must not be used after this."""
        self._close()

    def _allocate(self, size: int, *, host: bool) -> int:
        address = self.library.allocate(size, host=host)
        self._addresses.append((address, host))
        return address


def _give_back(library: DeviceLibrary, stream: int, addresses: list[tuple[int, bool]]) -> None:
    library.synchronize(stream)
    for address, host in addresses:
        library.free(address, host=host)
    library.destroy_stream(stream)
