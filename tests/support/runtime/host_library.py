"""A device's memory in the host's, for sessions on devices that run on the CPU; every copy is over on return."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any


class HostLibrary:
    """A DeviceLibrary in host memory.

    path: the library that has our ops for the CPU.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._blocks: dict[int, tuple[Any, bool]] = {}

    def allocate(self, bytes: int, *, host: bool = False) -> int:
        block = (ctypes.c_byte * max(bytes, 1))()
        self._blocks[ctypes.addressof(block)] = block, host
        return ctypes.addressof(block)

    def free(self, address: int, *, host: bool = False) -> None:
        assert self._blocks.pop(address)[1] == host

    def free_bytes(self) -> int:
        return 1 << 30

    def create_stream(self) -> int:
        return 1

    def destroy_stream(self, stream: int) -> None:
        pass

    def synchronize(self, stream: int) -> None:
        pass

    def copy(self, to: int, source: int, bytes: int, stream: int) -> None:
        ctypes.memmove(to, source, bytes)

    def copy_pieces(
        self, to: int, to_pitch: int, source: int, source_pitch: int, width: int, count: int, stream: int
    ) -> None:
        for i in range(count):
            ctypes.memmove(to + i * to_pitch, source + i * source_pitch, width)
