"""The backends of ONNX Runtime: the CPU, and NVIDIA GPUs through our CUDA library."""

from __future__ import annotations

from pathlib import Path

from enginewright.runtime.artifact.decoder_graph import added_inputs
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.backend import weight_bytes
from enginewright.runtime.backends.conditions import condition_bytes
from enginewright.runtime.backends.dense_session import DenseSession
from enginewright.runtime.backends.session import Session
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.machine import available_memory, physical_cores


class CpuBackend:
    """Opens engines in ONNX Runtime on the CPU.

    threads: number of threads; None for the number of physical cores.
    """

    def __init__(self, threads: int | None) -> None:
        self._threads = threads or physical_cores()

    def free_bytes(self, manifest: Manifest) -> int:
        """Return the memory that the process can still take, less the weights and the entries of conditions."""
        return available_memory() - weight_bytes(manifest) - condition_bytes(manifest)

    def open(self, root: Path, manifest: Manifest, tables: TileTables, capacity: Capacity) -> Session:
        """Open a CpuSession, or a DenseSession over a CpuDenseGraph where the cache is dense."""
        if manifest.cache.is_dense:
            from enginewright.runtime.backends.onnxruntime.cpu_dense_graph import CpuDenseGraph

            graph = CpuDenseGraph(root, manifest, capacity, threads=self._threads)
            return DenseSession(graph, tables, capacity, added_inputs(manifest))
        from enginewright.runtime.backends.onnxruntime.cpu_session import CpuSession

        return CpuSession(root, manifest, tables, capacity, threads=self._threads)


class CudaBackend:
    """Opens engines in ONNX Runtime on the current GPU, through `libenginewright_cuda`.

    Raises:
        UnsupportedError: the library is not built, or the driver or the device is too old.
    """

    def __init__(self) -> None:
        from enginewright.runtime.backends.onnxruntime.cuda_session import open_library

        self._library = open_library()

    def free_bytes(self, manifest: Manifest) -> int:
        """Return the free memory of the GPU, less the weights and the entries of conditions."""
        return self._library.free_bytes() - weight_bytes(manifest) - condition_bytes(manifest)

    def open(self, root: Path, manifest: Manifest, tables: TileTables, capacity: Capacity) -> Session:
        """Open a CudaSession."""
        from enginewright.runtime.backends.onnxruntime.cuda_session import CudaSession

        return CudaSession(root, manifest, tables, capacity, library=self._library)
