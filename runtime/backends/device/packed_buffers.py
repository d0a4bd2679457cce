"""Device buffers of packed steps: uploads a step's arrays, and downloads its results."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.decoder_graph import (
    LOGITS,
    SLOTS,
    TILE_TABLE,
    added_inputs,
    exact_pools,
    inputs,
)
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.device.condition_buffers import ConditionBuffers
from enginewright.runtime.backends.device.memory import DeviceBuffer, DeviceMemory
from enginewright.runtime.backends.port_shapes import Shapes
from enginewright.runtime.backends.session import Outputs, PackedStep
from enginewright.runtime.backends.step_arrays import StepArrays
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.errors import RequestError


class PackedBuffers:
    """The cache, tables, per-step arrays and results of a graph on a device, at their full size; created by a session.

    They are allocated once. A step is in order on the stream of `memory`: the copies in, the graph, and the copies out of the
    results that are wanted.

    inputs, results: the full sizes; then buffers by the graph's names for them.

    Raises:
        RequestError: there is too little memory.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        manifest: Manifest,
        tables: TileTables,
        taken: Shapes,
        results: Shapes,
    ) -> None:
        self._memory = memory
        self._tables = tables
        self._written: dict[str, NDArray[Any]] = {}
        self._uploaded_changes = -1  # the tables' tile_changes when the tile table was last uploaded
        try:
            self.inputs = {name: memory.buffer(*spec) for name, spec in taken.items()}
            self.results = {name: memory.buffer(*spec) for name, spec in results.items()}
        except MemoryError as e:
            needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in [*taken.values(), *results.values()])
            raise RequestError(f"load: {e}; cache and buffers take {needed / 2**20:.0f} MiB in all") from e
        self._arrays = StepArrays(added_inputs(manifest))
        held = [port.name for port in inputs(manifest) if port.lives == "table"]
        self._lengths = [name for name in held if name not in (TILE_TABLE.name, SLOTS.name)]  # they change in each step
        self._staged = {name: memory.pinned(*taken[name]) for name in (*self._arrays.names, *held)}
        self._read = {name: memory.pinned(*spec) for name, spec in results.items()}
        self._exact = [self.inputs[name] for name in exact_pools(manifest.cache)]
        self._conditions = ConditionBuffers(memory, manifest, self.inputs)
        self._upload_slots(np.arange(len(tables.held)))
        memory.synchronize()

    def write(self, step: PackedStep) -> None:
        """Start the copies of `step` and of the tables to the device."""
        for source, target in step.sink_copies:
            for exact in self._exact:
                self._copy_sink(exact, source, target)
        for name, array in self._arrays.of(step).items():
            if self._written.get(name) is not array:  # a step that repeats the last one brings the same arrays
                self._written[name] = array
                self.upload(name, array)
        for name in self._lengths:
            self.upload(name, getattr(self._tables, name))
        self._upload_tiles()

    def fill(self, port: str, entry: int, values: NDArray[Any]) -> None:
        """Write an entry of a condition's tensor, and wait for it."""
        self._conditions.fill(port, entry, values)

    def read(self, rows: int, *, reads_logits: bool) -> Outputs:
        """Wait for the first `rows` rows of the results, and return them; without reads_logits, the logits are old."""
        outputs = {name: array[:rows] for name, array in self._read.items()}
        for name, array in outputs.items():
            if name != LOGITS.name or reads_logits:
                self._memory.download(array, self.results[name])
        self._memory.synchronize()
        return Outputs.of(outputs)

    def upload(self, name: str, array: NDArray[Any]) -> None:
        """Start a copy of `array` to the beginning of an input; at most once between two calls of `read`."""
        self._memory.upload(self.inputs[name], self._stage(name, array))

    def _stage(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        staged = self._staged[name][: len(array)]
        staged[...] = array
        return staged

    def _upload_tiles(self) -> None:
        if self._uploaded_changes != self._tables.tile_changes:  # the table is large, and seldom changes
            self._uploaded_changes = self._tables.tile_changes
            self.upload(TILE_TABLE.name, self._tables.tile_table)

    def _upload_slots(self, slots: NDArray[Any]) -> None:
        """Upload each row's place in the buffers of exact tiles, where there are any."""
        if SLOTS.name in self._staged:
            self.upload(SLOTS.name, slots)

    def _copy_sink(self, exact: DeviceBuffer, source: int, target: int) -> None:
        """Copy the first exact tile of each KV head from one row to another."""
        _, heads, tiles, size = exact.shape
        tile = size * exact.dtype.itemsize
        head, row = tiles * tile, heads * tiles * tile
        at, memory = exact.address, self._memory
        memory.library.copy_pieces(at + target * row, head, at + source * row, head, tile, heads, memory.stream)
