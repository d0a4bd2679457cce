"""The packed decoder graph in ONNX Runtime on the CPU; every buffer is allocated and bound once."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray

from enginewright.plugins.libraries.locate import LibraryError, ort_library
from enginewright.runtime.artifact.decoder_graph import (
    LOGITS_WANTED,
    PER_STEP,
    SLOTS,
    added_inputs,
    exact_pools,
    inputs,
)
from enginewright.runtime.artifact.manifest import Graph, Manifest
from enginewright.runtime.backends.conditions import entry_values
from enginewright.runtime.backends.graph_check import check_ops, check_signature
from enginewright.runtime.backends.onnxruntime.huge_pages import huge_pages
from enginewright.runtime.backends.onnxruntime.open_graph import open_graph
from enginewright.runtime.backends.onnxruntime.policy_graphs import PolicyGraphs
from enginewright.runtime.backends.onnxruntime.run_errors import RUN_ERRORS, run_error
from enginewright.runtime.backends.port_shapes import input_shapes, output_shapes
from enginewright.runtime.backends.session import Outputs, PackedStep, policy_offers
from enginewright.runtime.backends.step_arrays import StepArrays
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.policy import LayerScores, StoredRow
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.errors import UnsupportedError
from enginewright.runtime.machine import compute_name

BACKEND = "onnxruntime"
_ALIGNMENT = 4096


class CpuSession:
    """A Session in ONNX Runtime on the CPU; created by CpuBackend.

    The tables and pools are bound by address once. A step's arrays are copied into buffers that stay. Where the length of
    an array changes, a value of the new length is bound; it is made once for each length and kept.

    run_seconds: seconds spent inside ONNX Runtime so far.
    offers: what a cache policy may ask of it.
    threads: number of threads that ONNX Runtime uses.
    """

    def __init__(self, root: Path, manifest: Manifest, tables: TileTables, capacity: Capacity, *, threads: int) -> None:
        graph = manifest.graphs["decoder"]
        check_ops(root, graph)
        self.run_seconds = 0.0
        self.offers = policy_offers(manifest, runs_graphs=True)
        self._manifest = manifest
        self._place = root, graph.files[0].path
        self._session = open_on_cpu(root, graph, threads)
        check_signature(root, manifest, (each.name for each in self._session.get_inputs()))
        self._binding = self._session.io_binding()
        self._arrays = StepArrays(added_inputs(manifest))
        self._buffers = _allocate(manifest, tables, capacity)
        self._exact = [self._buffers[name] for name in exact_pools(manifest.cache)]
        self._outputs = {name: np.zeros(*spec) for name, spec in output_shapes(manifest, capacity).items()}
        self._bound_rows = 0  # of the outputs
        self._bound: dict[str, int] = {}  # name of an array -> its length as it is bound
        self._inputs: dict[tuple[str, int], ort.OrtValue] = {}
        self._results: dict[int, tuple[Outputs, dict[str, ort.OrtValue]]] = {}  # number of rows -> outputs
        self._written: dict[str, NDArray[np.generic]] = {}
        self._logits_wanted = self._bind_wanted()
        self._bind_all(graph)
        self._policy = PolicyGraphs(root, manifest, self._buffers, open_graph=partial(open_on_cpu, threads=threads))

    def run(self, step: PackedStep) -> Outputs:
        """Return the outputs, writable and valid until the next run; the logits may be old unless the step reads them.

        Raises:
            ArtifactError: ONNX Runtime could not run the graph.
        """
        for source, target in step.sink_copies:
            for exact in self._exact:
                exact[target, :, 0] = exact[source, :, 0]
        for name in PER_STEP:
            self._write(name, getattr(step, name))
        for name, array in self._arrays.conditions(step).items():
            self._write(name, array)
        outputs = self._expect(len(step.sample_rows))
        if self._logits_wanted is not None:
            self._logits_wanted[0] = step.reads_logits
        start = time.perf_counter()
        try:
            self._session.run_with_iobinding(self._binding)
        except RUN_ERRORS as e:
            raise run_error(*self._place, e) from e
        self.run_seconds += time.perf_counter() - start
        return outputs

    def fill(self, port: str, entry: int, values: NDArray[Any]) -> None:
        """Write an entry of a condition's tensor."""
        self._buffers[port][entry] = entry_values(self._manifest, port, entry, values)

    def score(self, row: StoredRow) -> Sequence[LayerScores]:
        """Return the scores of a row's tokens."""
        return self._policy.score(row)

    def marks(self, row: StoredRow) -> Sequence[NDArray[np.float32]]:
        """Return the marks of a row's tokens."""
        return self._policy.marks(row)

    def compact(self, moves: Mapping[int, NDArray[np.int32]]) -> None:
        """Copy tokens between tiles."""
        self._policy.compact(moves)

    def encode(self, row: int, table: NDArray[np.int32], lens: NDArray[np.int32], encoded: NDArray[np.int32]) -> None:
        """Encode tiles of a row."""
        self._policy.encode(row, table, lens, encoded)

    def _write(self, name: str, array: NDArray[Any]) -> None:
        if self._written.get(name) is array:  # a step that repeats the last one brings the same arrays
            return
        self._written[name] = array
        self._buffers[name][: len(array)] = array
        if self._bound.get(name) == len(array):
            return
        self._bound[name] = len(array)
        value = self._inputs.get((name, len(array)))
        if value is None:
            value = ort.OrtValue.ortvalue_from_numpy(self._buffers[name][: len(array)])
            self._inputs[name, len(array)] = value
        self._binding.bind_ortvalue_input(name, value)

    def _expect(self, rows: int) -> Outputs:
        """Bind the outputs of the next run, `rows` rows of each, and return them."""
        if rows not in self._results:
            arrays = {name: array[:rows] for name, array in self._outputs.items()}
            bound = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
            self._results[rows] = Outputs.of(arrays), bound
        outputs, values = self._results[rows]
        if self._bound_rows != rows:
            self._bound_rows = rows
            for name, value in values.items():
                self._binding.bind_ortvalue_output(name, value)
        return outputs

    def _bind_all(self, graph: Graph) -> None:
        """Bind the buffers that never move."""
        for spec in graph.inputs:
            if spec.name not in self._arrays.names:
                self._bind_input(spec.name, self._buffers[spec.name])
        for spec in graph.outputs:
            if spec.alias is not None:
                self._bind_output(spec.name, self._buffers[spec.alias])

    def _bind_wanted(self) -> NDArray[np.int64] | None:
        """Bind the engine's own input that says whether logits are written; None where it has none."""
        if LOGITS_WANTED not in (each.name for each in self._session.get_overridable_initializers()):
            return None
        wanted = np.ones(1, np.int64)
        self._bind_input(LOGITS_WANTED, wanted)
        return wanted

    def _bind_input(self, name: str, array: NDArray[np.generic]) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def _bind_output(self, name: str, array: NDArray[np.generic]) -> None:
        self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _allocate(manifest: Manifest, tables: TileTables, capacity: Capacity) -> dict[str, NDArray[np.generic]]:
    """Return the buffer of every input at its full size; pages that are never written take no memory."""
    shapes = input_shapes(manifest, tables, capacity)
    buffers: dict[str, NDArray[np.generic]] = {}
    for port in inputs(manifest):
        if port.name == SLOTS.name:
            buffers[port.name] = np.arange(capacity.rows, dtype=np.int32)
        elif port.lives == "table":
            buffers[port.name] = getattr(tables, port.name)
        else:
            buffers[port.name] = aligned_zeros(*shapes[port.name])
    return buffers


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[np.generic]:
    """Return zeros that begin at the start of a memory page."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + _ALIGNMENT, np.int8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def open_on_cpu(root: Path, graph: Graph, threads: int) -> ort.InferenceSession:
    """Open the engine built for this machine, or else the graph itself; only a graph with our ops needs our library.

    Raises:
        UnsupportedError: the library is missing.
        ArtifactError: ONNX Runtime cannot load the graph.
    """
    options = ort.SessionOptions()
    try:
        if graph.ops:
            options.register_custom_ops_library(str(ort_library()))
    except LibraryError as e:
        raise UnsupportedError(str(e)) from e
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it makes a plan for each shape, and steps have new shapes all the time
    options.log_severity_level = 3
    with huge_pages():
        return open_graph(
            root, graph, options, ["CPUExecutionProvider"], backend=BACKEND, compute=compute_name(), optimized=True
        )
