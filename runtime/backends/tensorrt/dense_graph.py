"""A graph of standard ops under TensorRT, its caches updated in place, decoding as launches of CUDA graphs."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.dense_session import PER_CALL, DenseCall, cache_shapes
from enginewright.runtime.backends.device.cuda_runtime import CudaRuntime
from enginewright.runtime.backends.device.memory import DeviceBuffer, DeviceMemory
from enginewright.runtime.backends.graph_check import check_signature, output_shapes
from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.backends.tensorrt.contexts import ALIGNMENT, Contexts, buckets
from enginewright.runtime.backends.tensorrt.plan import Shape, TensorRTPlan
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.errors import RequestError, UnsupportedError

Ints = NDArray[np.int64]


class TensorRTDenseGraph:
    """A DenseGraph on a GPU. longest: tokens of a row in one run, as many as the plan's profiles admit.

    A run of one token a row, from the first row on, takes as many rows as the next of a few sizes, each of which is captured
    once as a CUDA graph. Rows that are not asked for write behind what they hold, where their next token goes anyway.
    captures: False runs everything without CUDA graphs; for tests.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        tables: TileTables,
        capacity: Capacity,
        *,
        plan: TensorRTPlan,
        cuda: CudaRuntime,
        captures: bool = True,
    ) -> None:
        graph = manifest.graphs["decoder"]
        self.run_seconds = 0.0
        self._plan = plan
        self._cuda = cuda
        self._tables = tables
        self._last = capacity.context - 1
        caches = cache_shapes(manifest, capacity.rows)
        types = {spec.name: spec.dtype for spec in graph.inputs if spec.name in caches}
        taken = (spec.name for spec in graph.inputs)
        check_signature(root, graph, taken, types | dict.fromkeys(PER_CALL, "int64"), drafts=False)
        self._sizes = buckets(capacity.rows)
        self._cache_shapes = {name: shape for name, (shape, _) in caches.items()}
        self.longest = min(_longest(plan, self._shapes(1, 1, 1)), capacity.step_tokens)
        self._check_capacity(capacity.rows)
        self._memory = DeviceMemory(cuda)
        try:
            self._caches = {name: self._memory.buffer(*spec) for name, spec in caches.items()}
        except MemoryError as e:
            needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in caches.values())
            raise RequestError(f"load: {e}; the cache takes {needed / 2**20:.0f} MiB in all") from e
        self._rows = _row_bytes(plan, self._caches)
        self._inputs, self._sampled, self._results = self._buffers(manifest, capacity)
        self._read = {name: self._memory.pinned(b.shape, b.dtype) for name, b in self._results.items()}
        self._staged = self._memory.pinned(
            (4 * (capacity.step_tokens + capacity.logit_rows + 4 * capacity.rows),), np.int64
        )
        self._used = 0  # of what is staged, since everything that was started has been waited for
        self._aliases = {spec.name: spec.alias for spec in graph.outputs if spec.alias is not None}
        fixed = {name: b.address for name, b in (self._inputs | self._sampled).items()}
        self.contexts = Contexts(plan, cuda, self._memory, fixed, captures=captures)

    def run(self, call: DenseCall) -> None:
        """As DenseGraph says."""
        start = time.perf_counter()
        self._cuda.enter_thread()
        rows, tokens = call.input_ids.shape
        size = next((each for each in self._sizes if each >= rows), 0)
        if tokens == 1 and call.first == 0 and size:
            self._write(self._padded(call, size))
            self.contexts.replay(size, self._shapes(size, 1, size), self._moving(0))
        else:
            self._write(call)
            self.contexts.run(self._shapes(rows, tokens, len(call.sample_rows)), self._moving(call.first))
        self._keep(call.at, len(call.sample_rows))
        self.run_seconds += time.perf_counter() - start

    def outputs(self, rows: int, *, reads_logits: bool) -> Outputs:
        """As DenseGraph says."""
        start = time.perf_counter()
        outputs = {name: array[:rows] for name, array in self._read.items()}
        for name, array in outputs.items():
            if name != "logits" or reads_logits:
                self._memory.download(array, self._results[name])
        self._synchronize()
        self.run_seconds += time.perf_counter() - start
        return Outputs(*outputs.values())

    def _padded(self, call: DenseCall, size: int) -> DenseCall:
        """The call on `size` rows, with as many samples; every row that is not asked for writes behind what it holds."""
        rows = len(call.input_ids)
        past = np.minimum(self._tables.held[:size], self._last)
        past[:rows] = call.past_lens
        ids, positions, samples = np.zeros((size, 1), np.int64), past[:, None].copy(), np.zeros(size, np.int64)
        ids[:rows], positions[:rows], samples[: len(call.sample_rows)] = (
            call.input_ids,
            call.position_ids,
            call.sample_rows,
        )
        return DenseCall(0, ids, positions, past, samples, call.at)

    def _write(self, call: DenseCall) -> None:
        """Start copying the inputs of a run to the device."""
        for name in PER_CALL:
            if name in self._inputs:
                array = getattr(call, name)
                self._memory.upload(self._inputs[name], self._stage(array))

    def _stage(self, array: Ints) -> Ints:
        """A pinned copy, which stays until everything that was started has been waited for."""
        if self._used + array.size > len(self._staged):
            self._synchronize()
        staged = self._staged[self._used : self._used + array.size]
        staged[...] = array.reshape(-1)
        self._used += array.size
        return staged

    def _keep(self, at: int, rows: int) -> None:
        """Start copying a run's outputs to their place: TensorRT itself writes to aligned addresses alone."""
        for name, result in self._results.items():
            row = math.prod(result.shape[1:]) * result.dtype.itemsize
            source = self._sampled[name].address
            self._memory.library.copy(result.address + at * row, source, rows * row, self._memory.stream)

    def _synchronize(self) -> None:
        self._memory.synchronize()
        self._used = 0

    def _moving(self, first: int) -> dict[str, int]:
        """Where the caches lie from row `first` on, and what updates them."""
        addresses = {name: buffer.address + first * self._rows[name] for name, buffer in self._caches.items()}
        return addresses | {name: addresses[alias] for name, alias in self._aliases.items()}

    def _shapes(self, rows: int, tokens: int, samples: int) -> dict[str, Shape]:
        sizes: dict[str, Shape] = {
            "input_ids": (rows, tokens),
            "position_ids": (rows, tokens),
            "past_lens": (rows,),
            "sample_rows": (samples,),
        }
        shapes = sizes | {name: (rows, *shape[1:]) for name, shape in self._cache_shapes.items()}
        return {name: shapes[name] for name in self._plan.inputs}

    def _buffers(
        self, manifest: Manifest, capacity: Capacity
    ) -> tuple[dict[str, DeviceBuffer], dict[str, DeviceBuffer], dict[str, DeviceBuffer]]:
        """What a run takes, what it samples, and what all runs of a step have sampled."""
        tokens = max(capacity.rows, self.longest)
        inputs = {name: self._memory.buffer((tokens,), np.int64) for name in PER_CALL if name in self._plan.inputs}
        shapes = output_shapes(manifest, capacity)
        most = max(capacity.rows, min(self.longest, capacity.logit_rows))
        sampled = {name: self._memory.buffer((most, *shape[1:]), dtype) for name, (shape, dtype) in shapes.items()}
        results = {
            name: self._memory.buffer((shape[0] + 1, *shape[1:]), dtype) for name, (shape, dtype) in shapes.items()
        }
        return inputs, sampled, results

    def _check_capacity(self, rows: int) -> None:
        """Raise RequestError where no profile admits a token of every row."""
        shapes = self._shapes(rows, 1, rows)
        if self._plan.find(shapes) is None:
            raise RequestError(
                f"load: {self._plan.describe_refusal(shapes)}; pass a smaller max_batch, or build an engine with larger limits"
            )


def _longest(plan: TensorRTPlan, single: dict[str, Shape]) -> int:
    """The most tokens of one row that a profile admits; at least 1. single: the shapes of a run of one token."""
    found = [
        profile.ranges["input_ids"][1][1]
        for profile in plan.profiles
        if not set(profile.refused(single)) - {"input_ids", "position_ids"}
    ]
    return max(found, default=1)


def _row_bytes(plan: TensorRTPlan, caches: dict[str, DeviceBuffer]) -> dict[str, int]:
    """Bytes of a row of each cache.

    Raises:
        UnsupportedError: a row would not begin where TensorRT can read it.
    """
    sizes = {name: buffer.nbytes // buffer.shape[0] for name, buffer in caches.items()}
    for name, size in sizes.items():
        if size % ALIGNMENT and caches[name].shape[0] > 1:
            raise UnsupportedError(
                f"{plan.path}: {name}: got rows of {size} bytes, expected a multiple of {ALIGNMENT}, as TensorRT reads them; "
                "build with another --max-context, or load with max_batch=1"
            )
    return sizes
