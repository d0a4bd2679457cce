"""A graph of standard ops in TensorRT; caches are updated in place, and decoding launches CUDA graphs."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.decoder_graph import INPUT_IDS, LOGITS, POOL, Axis, inputs
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.dense_session import DenseCall
from enginewright.runtime.backends.device.condition_buffers import ConditionBuffers
from enginewright.runtime.backends.device.cuda_runtime import CudaRuntime
from enginewright.runtime.backends.device.memory import DeviceBuffer, DeviceMemory
from enginewright.runtime.backends.graph_check import check_signature
from enginewright.runtime.backends.port_shapes import dense_shapes, output_shapes
from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.backends.tensorrt.contexts import ALIGNMENT, Contexts, padded_sizes
from enginewright.runtime.backends.tensorrt.plan import Shape, TensorRTPlan
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.errors import RequestError, UnsupportedError

Ints = NDArray[np.int64]


class TensorRTDenseGraph:
    """A DenseGraph in TensorRT; created by TensorRTBackend.

    A run of one token for each row, from the first row on, is filled up with rows to one of a few sizes; each size is
    captured once as a CUDA graph. The rows that fill it up write a token, too; it lands where their next real token will
    overwrite it.

    longest: the most tokens of a row in one run, as many as the plan's profiles admit.
    captures: False runs everything without CUDA graphs; for tests.

    Raises:
        RequestError: no profile admits one token of every row, or there is too little memory for the cache.
        UnsupportedError: TensorRT cannot read rows of this size.
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
        self._last_position = capacity.context - 1
        check_signature(root, manifest, (spec.name for spec in graph.inputs))
        self._ports = [port for port in inputs(manifest) if port.name in plan.inputs]
        self._sizes = padded_sizes(capacity.rows)
        per_token = {port.name for port in self._ports if "T" in port.axes}
        self.longest = min(_longest(plan, self._shapes(1, 1, 1), per_token), capacity.step_tokens)
        self._check_capacity(capacity.rows)
        self._memory = DeviceMemory(cuda)
        shapes = dense_shapes(manifest, capacity.rows)
        try:
            held = {name: self._memory.buffer(*spec) for name, spec in shapes.items()}
        except MemoryError as e:
            needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
            raise RequestError(f"load: {e}; the cache takes {needed / 2**20:.0f} MiB in all") from e
        self._caches = {name: buffer for name, buffer in held.items() if name.startswith(POOL)}
        entries = {name: buffer for name, buffer in held.items() if name not in self._caches}
        self._conditions = ConditionBuffers(self._memory, manifest, entries)
        self._row_bytes = _row_bytes(plan, self._caches)
        self._inputs, self._sampled, self._results = self._buffers(manifest, capacity)
        self._read = {name: self._memory.pinned(b.shape, b.dtype) for name, b in self._results.items()}
        self._staged = self._memory.pinned(
            (4 * (capacity.step_tokens + capacity.logit_rows + 4 * capacity.rows),), np.int64
        )
        self._staged_elements = 0  # elements of _staged in use by copies that may still run
        self._aliases = {spec.name: spec.alias for spec in graph.outputs if spec.alias is not None}
        taken = {name: buffer for name, buffer in entries.items() if name in plan.inputs}
        fixed = {name: b.address for name, b in (self._inputs | self._sampled | taken).items()}
        self.contexts = Contexts(plan, cuda, self._memory, fixed, captures=captures)

    def run(self, call: DenseCall) -> None:
        """Start a run, as a CUDA graph where it is one token of each row; copy its outputs to their place in the results."""
        start = time.perf_counter()
        self._cuda.enter_thread()
        rows, tokens = call.input_ids.shape
        size = next((each for each in self._sizes if each >= rows), 0)
        if tokens == 1 and call.first == 0 and size:
            self._write(self._padded(call, size))
            self.contexts.replay(size, self._shapes(size, 1, size), self._moving_addresses(0))
        else:
            self._write(call)
            self.contexts.run(self._shapes(rows, tokens, len(call.sample_rows)), self._moving_addresses(call.first))
        self._copy_results(call.at, len(call.sample_rows))
        self.run_seconds += time.perf_counter() - start

    def outputs(self, rows: int, *, reads_logits: bool) -> Outputs:
        """Wait for all runs, and return the first `rows` rows of the results; without reads_logits, the logits are old."""
        start = time.perf_counter()
        outputs = {name: array[:rows] for name, array in self._read.items()}
        for name, array in outputs.items():
            if name != LOGITS.name or reads_logits:
                self._memory.download(array, self._results[name])
        self._synchronize()
        self.run_seconds += time.perf_counter() - start
        return Outputs.of(outputs)

    def fill(self, port: str, entry: int, values: NDArray[Any]) -> None:
        """Write an entry of a condition's tensor."""
        self._cuda.enter_thread()
        self._conditions.fill(port, entry, values)

    def _padded(self, call: DenseCall, size: int) -> DenseCall:
        """Return the call on `size` rows, with as many samples; a row that is not wanted writes after its last token."""
        rows = len(call.input_ids)
        past = np.minimum(self._tables.held[:size], self._last_position)
        past[:rows] = call.past_lens
        ids, positions, samples = np.zeros((size, 1), np.int64), past[:, None].copy(), np.zeros(size, np.int64)
        ids[:rows], positions[:rows], samples[: len(call.sample_rows)] = (
            call.input_ids,
            call.position_ids,
            call.sample_rows,
        )
        conditions: dict[str, NDArray[Any]] = {}
        for name, array in call.conditions.items():
            conditions[name] = np.zeros((size, *array.shape[1:]), array.dtype)
            conditions[name][:rows] = array
        return DenseCall(0, ids, positions, past, samples, call.at, conditions)

    def _write(self, call: DenseCall) -> None:
        """Start the copies of a run's inputs to the device."""
        for name, buffer in self._inputs.items():
            array = call.conditions[name] if name in call.conditions else getattr(call, name)
            self._memory.upload(buffer, self._stage(array))

    def _stage(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a copy in pinned memory, which stays until all copies that have been started are over."""
        elements = -(-array.nbytes // self._staged.itemsize)
        if self._staged_elements + elements > len(self._staged):
            self._synchronize()
        staged = self._staged[self._staged_elements : self._staged_elements + elements].view(array.dtype)[: array.size]
        staged[...] = array.reshape(-1)
        self._staged_elements += elements
        return staged

    def _copy_results(self, at: int, rows: int) -> None:
        """Start the copies of a run's outputs to their place; TensorRT itself writes only to aligned addresses."""
        for name, result in self._results.items():
            row = math.prod(result.shape[1:]) * result.dtype.itemsize
            source = self._sampled[name].address
            self._memory.library.copy(result.address + at * row, source, rows * row, self._memory.stream)

    def _synchronize(self) -> None:
        self._memory.synchronize()
        self._staged_elements = 0

    def _moving_addresses(self, first: int) -> dict[str, int]:
        """Return the addresses of the caches from row `first` on, also under the names of the outputs that update them."""
        addresses = {name: buffer.address + first * self._row_bytes[name] for name, buffer in self._caches.items()}
        return addresses | {name: addresses[alias] for name, alias in self._aliases.items()}

    def _shapes(self, rows: int, tokens: int, samples: int) -> dict[str, Shape]:
        sizes: dict[Axis, int] = {"B": rows, "T": tokens, "N": samples}
        return {port.name: port.shape(sizes) for port in self._ports}

    def _buffers(
        self, manifest: Manifest, capacity: Capacity
    ) -> tuple[dict[str, DeviceBuffer], dict[str, DeviceBuffer], dict[str, DeviceBuffer]]:
        """Return buffers for the inputs of a run, for its outputs, and for the outputs of all runs of a step."""
        tokens = max(capacity.rows, self.longest)
        written = {
            port.name: self._memory.buffer((tokens,), port.dtype) for port in self._ports if port.lives == "step"
        }
        shapes = output_shapes(manifest, capacity)
        most = max(capacity.rows, min(self.longest, capacity.logit_rows))
        sampled = {name: self._memory.buffer((most, *shape[1:]), dtype) for name, (shape, dtype) in shapes.items()}
        results = {
            name: self._memory.buffer((shape[0] + 1, *shape[1:]), dtype) for name, (shape, dtype) in shapes.items()
        }
        return written, sampled, results

    def _check_capacity(self, rows: int) -> None:
        """Raise RequestError where no profile admits one token of every row."""
        shapes = self._shapes(rows, 1, rows)
        if self._plan.find(shapes) is None:
            raise RequestError(
                f"load: {self._plan.describe_refusal(shapes)}; pass a smaller max_batch, or build an engine with larger limits"
            )


def _longest(plan: TensorRTPlan, single: dict[str, Shape], per_token: set[str]) -> int:
    """Return the most tokens of one row that a profile admits; at least 1.

    single: the shapes of a run of one token.
    per_token: the inputs that have an axis of tokens.
    """
    found = [
        profile.ranges[INPUT_IDS.name][1][1]
        for profile in plan.profiles
        if not set(profile.refused(single)) - per_token
    ]
    return max(found, default=1)


def _row_bytes(plan: TensorRTPlan, caches: dict[str, DeviceBuffer]) -> dict[str, int]:
    """Return the bytes of a row of each cache.

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
