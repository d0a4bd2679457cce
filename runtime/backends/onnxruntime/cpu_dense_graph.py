"""A graph of standard ops in ONNX Runtime on the CPU, with caches that are updated in place."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.dense_session import PER_CALL, DenseCall, cache_shapes
from enginewright.runtime.backends.graph_check import check_signature, output_shapes
from enginewright.runtime.backends.onnxruntime.cpu_session import aligned_zeros, open_on_cpu
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
        shapes = cache_shapes(manifest, capacity.rows)
        if any(spec.dtype == "bfloat16" for spec in graph.inputs):
            raise UnsupportedError(
                f"{root}: got a graph in bfloat16, which ONNX Runtime does not run on a CPU; build with --dtype float16 or "
                "float32"
            )
        self._caches = {name: aligned_zeros(*spec) for name, spec in shapes.items()}
        self._aliases = {spec.name: spec.alias for spec in graph.outputs if spec.alias is not None}
        shapes = output_shapes(manifest, capacity)
        self._results = {name: np.zeros((sizes[0] + 1, *sizes[1:]), dtype) for name, (sizes, dtype) in shapes.items()}
        self._session = open_on_cpu(root, graph, threads)
        types = {name: array.dtype.name for name, array in self._caches.items()}
        taken = [each.name for each in self._session.get_inputs()]
        check_signature(root, graph, taken, types | dict.fromkeys(PER_CALL, "int64"), drafts=False)
        self._binding = self._session.io_binding()

    def run(self, call: DenseCall) -> None:
        """Run the graph on parts of the caches and of the results; the run is over on return."""
        rows = slice(call.first, call.first + len(call.input_ids))
        inputs: dict[str, NDArray[np.generic]] = {name: np.ascontiguousarray(getattr(call, name)) for name in PER_CALL}
        for name, array in inputs.items():
            self._bind(name, array, is_input=True)
        for name, cache in self._caches.items():
            self._bind(name, cache[rows], is_input=True)
        for name, alias in self._aliases.items():
            self._bind(name, self._caches[alias][rows], is_input=False)
        for name, result in self._results.items():
            self._bind(name, result[call.at : call.at + len(call.sample_rows)], is_input=False)
        start = time.perf_counter()
        self._session.run_with_iobinding(self._binding)
        self.run_seconds += time.perf_counter() - start

    def outputs(self, rows: int, *, reads_logits: bool) -> Outputs:
        """Return the first `rows` rows of the results; logits are always new."""
        return Outputs(self._results["logits"][:rows], self._results["greedy_tokens"][:rows])

    def _bind(self, name: str, array: NDArray[np.generic], *, is_input: bool) -> None:
        bind = self._binding.bind_input if is_input else self._binding.bind_output
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
