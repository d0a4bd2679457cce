"""Memory of a CUDA device for a session: buffers that live as long as it, filled and read through pinned memory."""

from __future__ import annotations

import ctypes
import math
import weakref
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class DeviceLibrary(Protocol):
    """Memory, streams and copies of a device: `plugins.cuda.CudaLibrary`, or `runtime.cuda_runtime.CudaRuntime`."""

    def allocate(self, bytes: int, *, host: bool = False) -> int:
        """The address of zeros on the device, or in pinned memory of the host; MemoryError where there is not as much."""
        ...

    def free(self, address: int, *, host: bool = False) -> None:
        """Give memory back."""
        ...

    def free_bytes(self) -> int:
        """Bytes of device memory that nobody has."""
        ...

    def create_stream(self) -> int:
        """A stream."""
        ...

    def destroy_stream(self, stream: int) -> None:
        """End a stream."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait for what was started on `stream`."""
        ...

    def copy(self, to: int, source: int, bytes: int, stream: int) -> None:
        """Copy, in order with what else is on `stream`."""
        ...

    def copy_pieces(
        self, to: int, to_pitch: int, source: int, source_pitch: int, width: int, count: int, stream: int
    ) -> None:
        """Copy `count` pieces of `width` bytes that lie `to_pitch` and `source_pitch` bytes apart."""
        ...


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

    def __init__(self, library: DeviceLibrary) -> None:
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


def _give_back(library: DeviceLibrary, stream: int, addresses: list[tuple[int, bool]]) -> None:
    library.synchronize(stream)
    for address, host in addresses:
        library.free(address, host=host)
    library.destroy_stream(stream)
