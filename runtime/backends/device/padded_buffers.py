"""Device buffers of packed steps that are filled up to one of a few sizes, so that a CUDA graph serves many steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.backends.device.memory import DeviceMemory
from enginewright.runtime.backends.device.packed_buffers import PackedBuffers
from enginewright.runtime.backends.session import PackedStep
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.tile_tables import TileTables

Spec = tuple[tuple[int, ...], np.dtype[Any]]


class PaddedBuffers(PackedBuffers):
    """Buffers with a spare tile in each pool, and a spare row of exact tiles; created by a session.

    No row of the scheduler has them. On the device, the tables of idle rows lead to them. The tokens that fill up a step
    belong to such an idle row, so they read and write memory that no request uses.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        tables: TileTables,
        inputs: dict[str, Spec],
        results: dict[str, Spec],
        capacity: Capacity,
    ) -> None:
        super().__init__(memory, tables, with_spares(inputs), results)
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
        super().write(pad(step, row, missing))
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
        staged = self._stage("tile_table", self._tables.tile_table)
        staged[:, self._idle] = self._spare_tiles[:, None, None, None]
        self._memory.upload(self.inputs["tile_table"], staged)
        self.upload("slots", np.where(self._idle, self._spare_row, np.arange(len(self._idle))))


def with_spares(inputs: dict[str, Spec]) -> dict[str, Spec]:
    """Return the shapes with one more tile in each pool, and one more row of exact tiles."""
    grown = {}
    for name, (shape, dtype) in inputs.items():
        extra = name.startswith("kv.")
        grown[name] = (shape[0] + extra, *shape[1:]), dtype
    return grown


def pad(step: PackedStep, row: int, missing: int) -> PackedStep:
    """Return the step with `missing` more tokens in `row`, which has none, and with as many samples as tokens."""
    starts = step.query_starts
    at = int(starts[row])
    samples = step.sample_rows + missing * (step.sample_rows >= at)
    tokens = len(step.input_ids) + missing
    return PackedStep(
        np.concatenate([step.input_ids[:at], np.zeros(missing, np.int64), step.input_ids[at:]]),
        np.concatenate([step.position_ids[:at], np.arange(missing), step.position_ids[at:]]),
        starts + np.int32(missing) * (np.arange(len(starts)) > row).astype(np.int32),
        np.concatenate([samples, np.zeros(tokens - len(samples), np.int64)]),
        step.sink_copies,
        step.reads_logits,
    )
