"""A graph of standard ops in ONNX Runtime on the CPU, with caches that are updated in place."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.decoder_graph import PER_CALL, POOL
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.conditions import entry_values
from enginewright.runtime.backends.dense_session import DenseCall
from enginewright.runtime.backends.graph_check import check_signature
from enginewright.runtime.backends.onnxruntime.cpu_session import aligned_zeros, open_on_cpu
from enginewright.runtime.backends.onnxruntime.run_errors import RUN_ERRORS, run_error
from enginewright.runtime.backends.port_shapes import dense_shapes, output_shapes
from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.errors import UnsupportedError


class CpuDenseGraph:
    """A DenseGraph on the CPU; created by CpuBackend.

    threads: number of threads that ONNX Runtime uses.
    """

    def __init__(self, root: Path, manifest: Manifest, capacity: Capacity, *, threads: int) -> None:
        graph = manifest.graphs["decoder"]
        self.longest = capacity.step_tokens
        self.run_seconds = 0.0
        if any(spec.dtype == "bfloat16" for spec in graph.inputs):
            raise UnsupportedError(
                f"{root}: got a graph in bfloat16, which ONNX Runtime does not run on a CPU; build with --dtype float16 or "
                "float32"
            )
        self._manifest = manifest
        self._place = root, graph.files[0].path
        held = {name: aligned_zeros(*spec) for name, spec in dense_shapes(manifest, capacity.rows).items()}
        self._caches = {name: array for name, array in held.items() if name.startswith(POOL)}
        self._entries = {name: array for name, array in held.items() if name not in self._caches}
        self._aliases = {spec.name: spec.alias for spec in graph.outputs if spec.alias is not None}
        self._results = {name: np.zeros(*spec) for name, spec in output_shapes(manifest, capacity, spare=1).items()}
        self._session = open_on_cpu(root, graph, threads)
        check_signature(root, manifest, (each.name for each in self._session.get_inputs()))
        self._binding = self._session.io_binding()
        for name, entries in self._entries.items():
            self._bind(name, entries, is_input=True)

    def run(self, call: DenseCall) -> None:
        """Run the graph on parts of the caches and of the results; the run is over on return.

        Raises:
            ArtifactError: ONNX Runtime could not run the graph.
        """
        rows = slice(call.first, call.first + len(call.input_ids))
        inputs: dict[str, NDArray[np.generic]] = {name: np.ascontiguousarray(getattr(call, name)) for name in PER_CALL}
        inputs |= {name: np.ascontiguousarray(array) for name, array in call.conditions.items()}
        for name, array in inputs.items():
            self._bind(name, array, is_input=True)
        for name, cache in self._caches.items():
            self._bind(name, cache[rows], is_input=True)
        for name, alias in self._aliases.items():
            self._bind(name, self._caches[alias][rows], is_input=False)
        for name, result in self._results.items():
            self._bind(name, result[call.at : call.at + len(call.sample_rows)], is_input=False)
        start = time.perf_counter()
        try:
            self._session.run_with_iobinding(self._binding)
        except RUN_ERRORS as e:
            raise run_error(*self._place, e) from e
        self.run_seconds += time.perf_counter() - start

    def outputs(self, rows: int, *, reads_logits: bool) -> Outputs:
        """Return the first `rows` rows of the results; logits are always new."""
        return Outputs.of({name: array[:rows] for name, array in self._results.items()})

    def fill(self, port: str, entry: int, values: NDArray[Any]) -> None:
        """Write an entry of a condition's tensor."""
        self._entries[port][entry] = entry_values(self._manifest, port, entry, values)

    def _bind(self, name: str, array: NDArray[np.generic], *, is_input: bool) -> None:
        bind = self._binding.bind_input if is_input else self._binding.bind_output
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
