"""The free tiles of layers that advance alike, and which of them each row holds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import CacheLayer

Ints = NDArray[np.int64]
Table = NDArray[np.int32]


class TilePool:
    """Layers with equal heads, window and pool size: they advance alike, so one free list serves them all.

    first, end [rows]: row b holds the tiles first[b] .. end[b] - 1 of its context. Where tiles are encoded, tile 0 lies
    elsewhere for good, and so does the newest one until it is full; `base` is 1 then.
    """

    def __init__(
        self, layer: CacheLayer, layers: Ints, tiles: int, table: Table, *, rows: int, step_tokens: int, size: int
    ) -> None:
        self.heads, self.is_encoded = layer.kv_heads, bool(layer.exact_bytes)
        self.base = int(self.is_encoded)
        self.free_count = tiles
        self.first: Ints = np.full(rows, self.base, np.int64)
        self.end: Ints = np.full(rows, self.base, np.int64)
        self._shared: Ints = np.full(rows, self.base, np.int64)  # tiles before it belong to prefixes, not to the row
        self._window, self._size = layer.window, size
        self._layers = layers
        self._table = table
        self._free = np.arange(tiles, dtype=np.int32)[::-1].copy()
        self._peak = (layer.window + step_tokens + size - 3) // size + 1 if layer.window else table.shape[3]

    @property
    def longest(self) -> int:
        """Tokens that a row alone can hold."""
        blocks = len(self._free) // self.heads
        whole = int(self._table.shape[3]) * self._size
        return whole if blocks >= self._peak else min(whole, int(self.room(np.array(self.base + blocks))))

    def ends(self, lengths: Ints) -> Ints:
        """Where the tiles of rows of `lengths` tokens end: with the full ones if they are encoded, else with the last."""
        return np.maximum(lengths // self._size, 1) if self.is_encoded else -(lengths // -self._size)

    def room(self, ends: Ints) -> Ints:
        """The most tokens that rows whose tiles end there can have."""
        return (ends + 1) * self._size - 1 if self.is_encoded else ends * self._size

    def trim(self, held: Ints) -> None:
        """Free the tiles wholly behind the window of the next token."""
        if not self._window:
            return
        first = np.minimum((held - self._window + 1) // self._size, self.end)
        for row in np.flatnonzero(first > self.first).tolist():
            self._push(row, int(self.first[row]), int(first[row]))
            self.first[row] = first[row]

    def wanted(self, ends: Ints) -> int:
        """Tiles that rows need for their tiles to end there."""
        return int(np.maximum(ends - self.end, 0).sum()) * self.heads

    def grow(self, ends: Ints) -> None:
        """Give each row the tiles that it lacks; enough are free."""
        for row in np.flatnonzero(ends > self.end).tolist():
            begin, end = int(self.end[row]), int(ends[row])
            count = (end - begin) * self.heads
            self.free_count -= count
            ids = self._free[self.free_count : self.free_count + count][::-1].reshape(-1, self.heads).T
            self._table[self._layers, row, : self.heads, begin:end] = ids
            self.end[row] = end

    def wanted_at_most(self, lengths: Ints) -> int:
        """Tiles that rows need to reach `lengths` tokens, those behind their windows given back."""
        wanted = np.minimum(self.ends(lengths) - self.base, self._peak)
        return int(np.maximum(wanted - (self.end - self.first), 0).sum()) * self.heads

    def attach(self, row: int, tiles: Table) -> None:
        """Append `tiles` [heads, n] that a prefix owns to an empty row, or one that has only such tiles."""
        begin = int(self.end[row])
        end = begin + tiles.shape[1]
        self._table[self._layers, row, : self.heads, begin:end] = tiles
        self.end[row] = self._shared[row] = end

    def give(self, row: int, end: int) -> Table:
        """Let a prefix own the row's tiles up to `end`, and return those [heads, n] that it did not own before."""
        begin = int(self._shared[row])
        self._shared[row] = end
        return self._table[self._layers[0], row, : self.heads, begin:end].copy()

    def take_back(self, tiles: Table) -> None:
        """Free `tiles` [heads, n] that a prefix owned."""
        self._free_tiles(tiles.T.ravel())

    def release(self, row: int) -> None:
        """Free the tiles that the row owns."""
        self._push(row, max(int(self.first[row]), int(self._shared[row])), int(self.end[row]))
        self.first[row] = self.end[row] = self._shared[row] = self.base

    def _push(self, row: int, begin: int, end: int) -> None:
        self._free_tiles(self._table[self._layers[0], row, : self.heads, begin:end].T.ravel())

    def _free_tiles(self, ids: Table) -> None:
        self._free[self.free_count : self.free_count + len(ids)] = ids[::-1]
        self.free_count += len(ids)
