"""What runs an engine directory on this machine: chosen by the engines that its manifest names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from enginewright.plugins.cuda import ORT_BACKEND
from enginewright.plugins.tensorrt import EXTRAS
from enginewright.runtime.artifact.manifest import Engine, Manifest
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.dense_session import DenseSession
from enginewright.runtime.errors import RequestError, UnsupportedError
from enginewright.runtime.host import available_memory, physical_cores
from enginewright.runtime.session import Session


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
        if manifest.cache.is_dense:
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


class TensorRTBackend:
    """TensorRT or TensorRT-RTX on the current GPU. name: "tensorrt" or "tensorrt-rtx".

    Raises:
        UnsupportedError: a package, the driver or the device is missing.
    """

    def __init__(self, name: str) -> None:
        from enginewright.runtime.cuda_runtime import open_cuda_runtime
        from enginewright.runtime.trt_plan import open_module

        self._name = name
        open_module(name)
        self._cuda = open_cuda_runtime(EXTRAS[name])

    def free_bytes(self, manifest: Manifest) -> int:
        """As Backend says."""
        return self._cuda.free_bytes() - sum(file.size for file in self._engine(manifest).files)

    def open(self, root: Path, manifest: Manifest, tables: TileTables, capacity: Capacity) -> Session:
        """As Backend says."""
        from enginewright.runtime.trt_dense import TensorRTDenseGraph
        from enginewright.runtime.trt_plan import open_plan
        from enginewright.runtime.trt_session import TensorRTSession

        plan = open_plan(root, manifest.graphs["decoder"], self._engine(manifest), self._cuda)
        if not manifest.cache.is_dense:
            return TensorRTSession(root, manifest, tables, capacity, plan=plan, cuda=self._cuda)
        graph = TensorRTDenseGraph(root, manifest, tables, capacity, plan=plan, cuda=self._cuda)
        return DenseSession(graph, tables, capacity)

    def _engine(self, manifest: Manifest) -> Engine:
        return next(engine for engine in manifest.graphs["decoder"].engines if engine.backend == self._name)


CPU = "onnxruntime"
OPENERS: dict[str, Callable[[int | None], Backend]] = {
    "tensorrt": lambda _: TensorRTBackend("tensorrt"),
    "tensorrt-rtx": lambda _: TensorRTBackend("tensorrt-rtx"),
    ORT_BACKEND: lambda _: CudaBackend(),
    CPU: CpuBackend,
}
"""Backend -> what opens it, given the threads of a CPU; those are preferred that come first."""


def choose_backend(manifest: Manifest, threads: int | None, name: str | None = None) -> Backend:
    """The backend called `name`; else the first of OPENERS that an engine was built for and that can run here.

    A directory without engines runs its graph on the CPU.

    Raises:
        RequestError: no backend is called so, or the directory has no engine for it.
        UnsupportedError: what the chosen one needs is missing, or all of them.
    """
    built = {engine.backend for engine in manifest.graphs["decoder"].engines}
    if name is not None:
        _check_name(manifest, built, name)
        return OPENERS[name](threads)
    reasons: dict[str, UnsupportedError] = {}
    for candidate in OPENERS:
        if candidate in built:
            try:
                return OPENERS[candidate](threads)
            except UnsupportedError as e:
                reasons[candidate] = e
    if not reasons:
        return CpuBackend(threads)
    *_, last = reasons.values()
    told = [str(e) if str(e).startswith(each) or len(reasons) == 1 else f"{each}: {e}" for each, e in reasons.items()]
    hint = f", or pass --backend {CPU} to run the graph on the CPU" if runs_on_cpu(manifest) else ""
    raise UnsupportedError(f"{'; '.join(told)}{hint}") from last


def runs_on_cpu(manifest: Manifest) -> bool:
    """Whether ONNX Runtime can run the graph itself on a CPU, where our ops compute in float32 alone."""
    return manifest.dtype == "float32" or (manifest.dtype == "float16" and not manifest.graphs["decoder"].ops)


def _check_name(manifest: Manifest, built: set[str], name: str) -> None:
    if name not in OPENERS:
        raise RequestError(f"load: backend: got {name!r}, expected one of {', '.join(OPENERS)}")
    if name not in built and name != CPU:
        raise RequestError(
            f"load: backend: got {name!r}, but {manifest.name} has engines for {', '.join(sorted(built)) or 'none'}; "
            f"`enginewright compile DIR --backend {name}` builds one"
        )
    if name == CPU and not runs_on_cpu(manifest):
        raise UnsupportedError(
            f"load: backend: got {name!r}, but the graph of {manifest.name} computes in half precision, which our ops do "
            "not do on a CPU; choose another backend, or build with --dtype float32"
        )
