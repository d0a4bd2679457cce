"""What runs an engine directory on this machine: chosen by the engines that its manifest names."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from enginewright.plugins.cuda import ORT_BACKEND
from enginewright.runtime.artifact import Manifest
from enginewright.runtime.dense_session import DenseSession
from enginewright.runtime.host import available_memory, physical_cores
from enginewright.runtime.session import Session
from enginewright.runtime.tiles import Capacity, TileTables


class Backend(Protocol):
    """Opens sessions on one kind of device."""

    def free_bytes(self, manifest: Manifest) -> int:
        """Bytes that are free for a cache beside the engine's weights."""
        ...

    def open(self, root: Path, manifest: Manifest, tables: TileTables, capacity: Capacity) -> Session:
        """Open the engine; MemoryError where its cache finds no place."""
        ...


def weight_bytes(manifest: Manifest) -> int:
    """Bytes of the decoder graph's files."""
    return sum(file.size for file in manifest.graphs["decoder"].files)


class CpuBackend:
    """ONNX Runtime on the CPU. threads: default: the physical cores."""

    def __init__(self, threads: int | None) -> None:
        self._threads = threads or physical_cores()

    def free_bytes(self, manifest: Manifest) -> int:
        """As Backend says."""
        return available_memory() - weight_bytes(manifest)

    def open(self, root: Path, manifest: Manifest, tables: TileTables, capacity: Capacity) -> Session:
        """As Backend says."""
        if manifest.cache.kind == "dense":
            from enginewright.runtime.ort_dense import OrtDenseGraph

            return DenseSession(OrtDenseGraph(root, manifest, capacity, threads=self._threads), tables, capacity)
        from enginewright.runtime.ort_session import OrtSession

        return OrtSession(root, manifest, tables, capacity, threads=self._threads)


class CudaBackend:
    """ONNX Runtime on the current GPU, through `libenginewright_cuda`."""

    def __init__(self) -> None:
        from enginewright.runtime.cuda_session import open_library

        self._library = open_library()

    def free_bytes(self, manifest: Manifest) -> int:
        """As Backend says."""
        return self._library.free_bytes() - weight_bytes(manifest)

    def open(self, root: Path, manifest: Manifest, tables: TileTables, capacity: Capacity) -> Session:
        """As Backend says."""
        from enginewright.runtime.cuda_session import CudaSession

        return CudaSession(root, manifest, tables, capacity, library=self._library)


def choose_backend(manifest: Manifest, threads: int | None) -> Backend:
    """The GPU for an engine that was built for it, else the CPU.

    Raises:
        UnsupportedError: there is no library or no GPU for such an engine.
    """
    built = {engine.backend for engine in manifest.graphs["decoder"].engines}
    return CudaBackend() if ORT_BACKEND in built else CpuBackend(threads)
