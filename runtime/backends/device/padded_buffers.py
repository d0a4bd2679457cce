"""Device buffers of packed steps that are filled up to one of a few sizes, so that a CUDA graph serves many steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.decoder_graph import (
    INPUTS,
    PER_STEP,
    TILE_TABLE,
    Port,
    added_inputs,
)
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.device.memory import DeviceMemory
from enginewright.runtime.backends.device.packed_buffers import PackedBuffers
from enginewright.runtime.backends.port_shapes import Shapes
from enginewright.runtime.backends.session import PackedStep
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.tile_tables import TileTables


class PaddedBuffers(PackedBuffers):
    """Buffers with a spare tile in each pool, and a spare row of exact tiles; created by a session.

    No row of the scheduler has them. On the device, the tables of idle rows lead to them. The tokens that fill up a step
    belong to such an idle row, so they read and write memory that no request uses.

    taken: as for PackedBuffers, with SPARE more tiles and rows of exact tiles.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        manifest: Manifest,
        tables: TileTables,
        taken: Shapes,
        results: Shapes,
        capacity: Capacity,
    ) -> None:
        super().__init__(memory, manifest, tables, taken, results)
        self._per_step = tuple(port for port in (*INPUTS, *added_inputs(manifest)) if port.lives == "step")
        self._spare_tiles = np.array(capacity.tiles, np.int32)
        self._spare_row = capacity.rows
        self._idle = self._parked = np.zeros(capacity.rows, np.bool_)

    def write(self, step: PackedStep) -> None:
        """Start the copies of `step` and of the tables to the device."""
        self._idle = self._idle_rows(step)
        super().write(step)

    def write_padded(self, step: PackedStep, size: int) -> bool:
        """Start the copies of `step`, filled up to `size` tokens and samples.

        Return False, and do nothing, where there is no idle row to fill it up with, or too much to fill up.
        """
        missing = size - len(step.input_ids)
        idle = self._idle_rows(step)
        if missing and (not idle.any() or missing > self._tables.tile_tokens):
            return False
        self._idle = idle
        row = int(np.flatnonzero(idle)[-1]) if missing else 0
        super().write(pad(step, self._per_step, row, missing))
        return True

    def _idle_rows(self, step: PackedStep) -> NDArray[np.bool_]:
        """Return for each row whether it is idle: it has no token in the cache, and none in the step."""
        idle: NDArray[np.bool_] = (self._tables.held == 0) & (np.diff(step.query_starts) == 0)
        return idle

    def _upload_tiles(self) -> None:
        """Upload the tile table if it or the idle rows have changed; in it, idle rows lead to the spare tiles and row."""
        if self._uploaded_changes == self._tables.tile_changes and (self._parked == self._idle).all():
            return
        self._uploaded_changes, self._parked = self._tables.tile_changes, self._idle
        staged = self._stage(TILE_TABLE.name, self._tables.tile_table)
        staged[:, self._idle] = self._spare_tiles[:, None, None, None]
        self._memory.upload(self.inputs[TILE_TABLE.name], staged)
        self._upload_slots(np.where(self._idle, self._spare_row, np.arange(len(self._idle))))


def pad(step: PackedStep, ports: Iterable[Port], row: int, missing: int) -> PackedStep:
    """Return the step with `missing` more tokens in `row`, which has none, and with as many samples as tokens.

    ports: those that a step writes; each says what it gets for the additional tokens.
    """
    at, tokens = int(step.query_starts[row]), len(step.input_ids) + missing
    padded: dict[str, NDArray[Any]] = {}
    for port in ports:
        array = getattr(step, port.name) if port.name in PER_STEP else step.conditions.get(port.name)
        if array is None:
            continue
        if port.axes == ("T",) and missing:
            array = np.concatenate([array[:at], _added(port, missing), array[at:]])
        elif port.axes == ("B1",):
            array = array + np.int32(missing) * (np.arange(len(array)) > row).astype(np.int32)
        elif port.axes == ("N",):
            array = np.concatenate([array + missing * (array >= at), np.zeros(tokens - len(array), array.dtype)])
        padded[port.name] = array
    own: dict[str, Any] = {name: padded.pop(name) for name in PER_STEP}
    return replace(step, **own, conditions=padded)


def _added(port: Port, missing: int) -> NDArray[Any]:
    if port.padding == "ascending":
        return np.arange(missing, dtype=port.dtype)
    return np.full(missing, port.padding, port.dtype)
