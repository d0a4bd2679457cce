"""The backends of TensorRT and TensorRT-RTX, which open a plan on the current GPU."""

from __future__ import annotations

from pathlib import Path

from enginewright.plugins.libraries.tensorrt import EXTRAS
from enginewright.runtime.artifact.decoder_graph import added_inputs
from enginewright.runtime.artifact.manifest import BuiltGraph, Manifest
from enginewright.runtime.backends.conditions import condition_bytes
from enginewright.runtime.backends.dense_session import DenseSession
from enginewright.runtime.backends.session import Session
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.tile_tables import TileTables


class TensorRTBackend:
    """Opens engines in TensorRT or TensorRT-RTX on the current GPU.

    name: "tensorrt" or "tensorrt-rtx".

    Raises:
        UnsupportedError: a package, the driver or the device is missing.
    """

    def __init__(self, name: str) -> None:
        from enginewright.runtime.backends.device.cuda_runtime import open_cuda_runtime
        from enginewright.runtime.backends.tensorrt.plan import open_module

        self._name = name
        open_module(name)
        self._cuda = open_cuda_runtime(EXTRAS[name])

    def free_bytes(self, manifest: Manifest) -> int:
        """Return the free memory of the GPU, less the plan, its weights and the entries of conditions."""
        plan = sum(file.size for file in self._engine(manifest).files)
        return self._cuda.free_bytes() - plan - condition_bytes(manifest)

    def open(self, root: Path, manifest: Manifest, tables: TileTables, capacity: Capacity) -> Session:
        """Open a TensorRTSession, or a DenseSession over a TensorRTDenseGraph where the cache is dense."""
        from enginewright.runtime.backends.tensorrt.dense_graph import TensorRTDenseGraph
        from enginewright.runtime.backends.tensorrt.packed_session import TensorRTSession
        from enginewright.runtime.backends.tensorrt.plan import open_plan

        plan = open_plan(root, manifest.graphs["decoder"], self._engine(manifest), self._cuda)
        if not manifest.cache.is_dense:
            return TensorRTSession(root, manifest, tables, capacity, plan=plan, cuda=self._cuda)
        graph = TensorRTDenseGraph(root, manifest, tables, capacity, plan=plan, cuda=self._cuda)
        return DenseSession(graph, tables, capacity, added_inputs(manifest))

    def _engine(self, manifest: Manifest) -> BuiltGraph:
        return next(engine for engine in manifest.graphs["decoder"].engines if engine.backend == self._name)
