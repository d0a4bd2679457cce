"""Tests of the CUDA library as Python loads it: ABI, refusals, memory and copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginewright.plugins.libraries import cuda
from enginewright.plugins.libraries.cuda import CudaLibrary
from enginewright.plugins.libraries.locate import LibraryError
from tests.support.kernels.device import Device


def test_a_library_of_another_abi_is_refused(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "ABI", cuda.ABI + 1)
    message = rf"got ABI {cuda.ABI - 1} \(version 0\.1\.0\), expected {cuda.ABI}; build or install the library again"
    with pytest.raises(LibraryError, match=message):
        CudaLibrary(device.library.path)


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "libenginewright_cuda.so"
    path.write_bytes(b"not a library")
    with pytest.raises(LibraryError, match=r"libenginewright_cuda.so does not load: .*"):
        CudaLibrary(path)


def test_memory_is_zeros_and_copies_move_pieces(device: Device) -> None:
    library = device.library
    stream, memory, host = library.create_stream(), library.allocate(1000), library.allocate(1000, host=True)
    import ctypes

    seen = (ctypes.c_ubyte * 1000).from_address(host)
    library.copy(host, memory, 1000, stream)
    library.synchronize(stream)
    assert not any(seen)
    seen[:] = [i % 251 for i in range(1000)]
    library.copy_pieces(memory, 100, host, 10, 10, 7, stream)
    library.copy(host, memory, 700, stream)
    library.synchronize(stream)
    assert [seen[100 * i] for i in range(7)] == [10 * i for i in range(7)] and seen[11] == 0
    assert library.free_bytes() > 0
    library.free(memory)
    library.free(host, host=True)
    library.destroy_stream(stream)
