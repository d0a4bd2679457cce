"""The devices that run a kernel: a GPU, or its emulation on the CPU. Both take and return numpy arrays.

On a GPU torch owns the memory; torch is imported only there.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from enginewright.plugins.libraries.cuda import BFLOAT16, HALF, CudaLibrary
from enginewright.plugins.libraries.cuda_calls import CallStructure

GUARD_BYTES = 4096
POISON = 0xFF  # halves and floats of these bytes are NaN


class Buffer:
    """Memory of a device with `array`'s contents, at an address that is a multiple of 256; poisoned after its end."""

    def __init__(self, owner: Any, address: int, array: np.ndarray) -> None:
        self.owner = owner
        self.address = address
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes


class Device(Protocol):
    """A device with the library for it."""

    name: str
    library: CudaLibrary

    def upload(self, array: np.ndarray) -> Buffer:
        """Copy `array` to the device."""
        ...

    def bytes_of(self, buffer: Buffer) -> np.ndarray:
        """All bytes of `buffer`, including those after its end."""
        ...

    def synchronize(self) -> None:
        """Wait for everything that was started."""
        ...


def download(device: Device, buffer: Buffer) -> np.ndarray:
    """The contents of `buffer`.

    Raises:
        AssertionError: something was written after its end.
    """
    found = device.bytes_of(buffer)
    assert (found[buffer.nbytes :] == POISON).all(), "a kernel wrote beyond a buffer"
    return found[: buffer.nbytes].copy().view(buffer.dtype).reshape(buffer.shape)


def run(device: Device, call: CallStructure) -> None:
    """Start `call` with a workspace of the size that it needs, full of NaNs, and wait for it."""
    needed = device.library.workspace_bytes(call)
    workspace = device.upload(np.full(needed, POISON, np.uint8))
    device.library.start(call, workspace.address, needed)
    device.synchronize()
    download(device, workspace)


class EmulatedDevice:
    """The CPU."""

    name = "emulated"

    def __init__(self, library: CudaLibrary) -> None:
        self.library = library

    def upload(self, array: np.ndarray) -> Buffer:
        owner = np.full(array.nbytes + GUARD_BYTES + 256, POISON, np.uint8)
        start = -owner.ctypes.data % 256
        owner[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return Buffer(owner, owner.ctypes.data + start, array)

    def bytes_of(self, buffer: Buffer) -> np.ndarray:
        start = buffer.address - buffer.owner.ctypes.data
        return np.asarray(buffer.owner[start : start + buffer.nbytes + GUARD_BYTES])

    def synchronize(self) -> None:
        pass


class CudaDevice:
    """The current GPU."""

    name = "cuda"

    def __init__(self, library: CudaLibrary) -> None:
        import torch

        self._torch = torch
        self.library = library

    def upload(self, array: np.ndarray) -> Buffer:
        torch = self._torch
        owner = torch.full((array.nbytes + GUARD_BYTES,), POISON, dtype=torch.uint8, device="cuda")
        assert owner.data_ptr() % 256 == 0
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy()
        owner[: array.nbytes] = torch.from_numpy(raw).cuda()
        torch.cuda.synchronize()
        return Buffer(owner, owner.data_ptr(), array)

    def bytes_of(self, buffer: Buffer) -> np.ndarray:
        return np.asarray(buffer.owner.cpu().numpy())

    def synchronize(self) -> None:
        self._torch.cuda.synchronize()


TYPES = {"float16": HALF, "bfloat16": BFLOAT16}


def to_bits(array: np.ndarray, type: str) -> np.ndarray:
    """float32 numbers as the 16 bits of `type`, rounded to nearest even."""
    if type == "float16":
        return array.astype(np.float16).view(np.uint16)
    words = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    return ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype(np.uint16)


def from_bits(bits: np.ndarray, type: str) -> np.ndarray:
    """The float32 numbers of such bits."""
    if type == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(array: np.ndarray, type: str) -> np.ndarray:
    """float32 numbers that `type` can hold."""
    return from_bits(to_bits(array, type), type)
