"""Packed steps filled up to a size that many steps share, so that one CUDA graph serves them all."""

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
    """Buffers with one tile in each pool, and one slot of exact tiles, that no row has.

    On the device the tables of rows without tokens lead there. Tokens that fill a step up belong to such a row: they read
    and write what nobody else does.
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
        """Start copying everything of `step` to the device."""
        self._idle = self._idle_rows(step)
        super().write(step)

    def write_padded(self, step: PackedStep, size: int) -> bool:
        """Start copying `step`, filled up to `size` tokens and samples; False, and nothing done, where no row is idle."""
        missing = size - len(step.input_ids)
        idle = self._idle_rows(step)
        if missing and (not idle.any() or missing > self._tables.tile_tokens):
            return False
        self._idle = idle
        row = int(np.flatnonzero(idle)[-1]) if missing else 0
        super().write(pad(step, row, missing))
        return True

    def _idle_rows(self, step: PackedStep) -> NDArray[np.bool_]:
        """The rows that hold no token and bring none."""
        idle: NDArray[np.bool_] = (self._tables.held == 0) & (np.diff(step.query_starts) == 0)
        return idle

    def _upload_tiles(self) -> None:
        """Upload the tables where they have changed, those of idle rows changed to lead to what is spare."""
        if self._uploaded_changes == self._tables.tile_changes and (self._parked == self._idle).all():
            return
        self._uploaded_changes, self._parked = self._tables.tile_changes, self._idle
        staged = self._stage("tile_table", self._tables.tile_table)
        staged[:, self._idle] = self._spare_tiles[:, None, None, None]
        self._memory.upload(self.inputs["tile_table"], staged)
        self.upload("slots", np.where(self._idle, self._spare_row, np.arange(len(self._idle))))


def with_spares(inputs: dict[str, Spec]) -> dict[str, Spec]:
    """The shapes with one tile more in each pool, and one more slot of exact tiles."""
    grown = {}
    for name, (shape, dtype) in inputs.items():
        extra = name.startswith("kv.")
        grown[name] = (shape[0] + extra, *shape[1:]), dtype
    return grown


def pad(step: PackedStep, row: int, missing: int) -> PackedStep:
    """The step with `missing` more tokens in `row`, which brings none, and as many samples as tokens."""
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
