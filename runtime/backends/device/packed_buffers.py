"""Device buffers of packed steps: uploads a step's arrays, and downloads its results."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.decoder_graph import PER_STEP
from enginewright.runtime.backends.device.memory import DeviceBuffer, DeviceMemory
from enginewright.runtime.backends.graph_check import TABLES
from enginewright.runtime.backends.session import Outputs, PackedStep
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.errors import RequestError


class PackedBuffers:
    """The cache, tables, per-step arrays and results of a graph on a device, at their full size; created by a session.

    They are allocated once. A step is in order on the stream of `memory`: the copies in, the graph, and the copies out of the
    results that are wanted.

    inputs, results: buffers by the graph's names for them.

    Raises:
        RequestError: there is too little memory.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        tables: TileTables,
        inputs: dict[str, tuple[tuple[int, ...], np.dtype[Any]]],
        results: dict[str, tuple[tuple[int, ...], np.dtype[Any]]],
    ) -> None:
        self._memory = memory
        self._tables = tables
        self._uploaded_changes = -1  # the tables' tile_changes when the tile table was last uploaded
        try:
            self.inputs = {name: memory.buffer(*spec) for name, spec in inputs.items()}
            self.results = {name: memory.buffer(*spec) for name, spec in results.items()}
        except MemoryError as e:
            needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in [*inputs.values(), *results.values()])
            raise RequestError(f"load: {e}; cache and buffers take {needed / 2**20:.0f} MiB in all") from e
        self._staged = {name: memory.pinned(*inputs[name]) for name in (*PER_STEP, *TABLES, "slots")}
        self._read = {name: memory.pinned(*spec) for name, spec in results.items()}
        self._exact = [buffer for name, buffer in self.inputs.items() if name.endswith(".exact")]
        self.upload("slots", np.arange(len(self._staged["slots"]), dtype=np.int32))
        memory.synchronize()

    def write(self, step: PackedStep) -> None:
        """Start the copies of `step` and of the tables to the device."""
        for source, target in step.sink_copies:
            for exact in self._exact:
                self._copy_sink(exact, source, target)
        for name in PER_STEP:
            self.upload(name, getattr(step, name))
        self.upload("kv_lens", self._tables.kv_lens)
        self.upload("encoded_lens", self._tables.encoded_lens)
        self._upload_tiles()

    def read(self, rows: int, *, reads_logits: bool) -> Outputs:
        """Wait for the first `rows` rows of the results, and return them; without reads_logits, the logits are old."""
        outputs = {name: array[:rows] for name, array in self._read.items()}
        for name, array in outputs.items():
            if name != "logits" or reads_logits:
                self._memory.download(array, self.results[name])
        self._memory.synchronize()
        return Outputs(*outputs.values())

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
            self.upload("tile_table", self._tables.tile_table)

    def _copy_sink(self, exact: DeviceBuffer, source: int, target: int) -> None:
        """Copy the first exact tile of each KV head from one row to another."""
        _, heads, tiles, size = exact.shape
        tile = size * exact.dtype.itemsize
        head, row = tiles * tile, heads * tiles * tile
        at, memory = exact.address, self._memory
        memory.library.copy_pieces(at + target * row, head, at + source * row, head, tile, heads, memory.stream)
