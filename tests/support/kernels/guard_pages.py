"""Finds accesses beyond a buffer that change no result: an emulated device whose buffers end where memory ends."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable

import numpy as np

from tests.support.kernels.device import POISON, Buffer, Device, EmulatedDevice

PROTECT_ALL = 0


class TightDevice(EmulatedDevice):
    """The CPU; a read or write 16 bytes or more after a buffer's end is a segmentation fault."""

    def upload(self, array: np.ndarray) -> Buffer:
        end = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        owner = mmap.mmap(-1, end + mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(owner))
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + end), ctypes.c_size_t(mmap.PAGESIZE), PROTECT_ALL):
            raise OSError("mprotect failed")
        start = end - -(-array.nbytes // 16) * 16  # kernels ask for addresses that are multiples of 16
        owner[start : start + array.nbytes] = array.tobytes()
        return Buffer(owner, address + start, array)

    def bytes_of(self, buffer: Buffer) -> np.ndarray:
        found = np.frombuffer(ctypes.string_at(buffer.address, buffer.nbytes), np.uint8)
        return np.append(found, np.uint8(POISON))


def stays_within_buffers(device: Device, body: Callable[[Device], object]) -> bool:
    """Whether `body` ends on such a device; in a process of its own, which a fault ends."""
    process = os.fork()
    if process == 0:
        try:
            body(TightDevice(device.library))
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(process, 0)[1] == 0
