"""The tiles of a group of layers that advance together: those that are free, and those of each row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import CacheLayer

Ints = NDArray[np.int64]
Table = NDArray[np.int32]


class TilePool:
    """The tiles of a group of layers; created by TileTables.

    The layers have equal heads, window and pool size. So they need the same number of tiles at all times, and one list of
    free tiles serves them all.

    heads: KV heads of each layer; a block of tokens takes one tile for each head.
    is_encoded: whether full tiles are encoded.
    base: the first block that a row takes from the pool: 1 where tiles are encoded, otherwise 0. Where tiles are encoded,
        block 0 always lies elsewhere, and so does the newest block until it is full.
    free_count: number of free tiles.
    first, end [rows]: row b holds blocks first[b] .. end[b] - 1 of its context.
    """

    def __init__(
        self, layer: CacheLayer, layers: Ints, tiles: int, table: Table, *, rows: int, step_tokens: int, size: int
    ) -> None:
        self.heads, self.is_encoded = layer.kv_heads, bool(layer.exact_bytes)
        self.base = int(self.is_encoded)
        self.free_count = tiles
        self.first: Ints = np.full(rows, self.base, np.int64)
        self.end: Ints = np.full(rows, self.base, np.int64)
        self._shared: Ints = np.full(rows, self.base, np.int64)  # blocks before it belong to prefixes, not to the row
        self._window, self._size = layer.window, size
        self._layers = layers
        self._table = table
        self._free = np.arange(tiles, dtype=np.int32)[::-1].copy()
        self._most_blocks = (layer.window + step_tokens + size - 3) // size + 1 if layer.window else table.shape[3]

    @property
    def longest(self) -> int:
        """The most tokens that a row can hold when no other row holds any."""
        blocks = len(self._free) // self.heads
        whole = int(self._table.shape[3]) * self._size
        if blocks >= self._most_blocks:
            return whole
        return min(whole, int(self.tokens_that_fit(np.array(self.base + blocks))))

    def ends_for(self, lengths: Ints) -> Ints:
        """Return where the blocks of rows of `lengths` tokens end: after the full ones if encoded, else after the last."""
        return np.maximum(lengths // self._size, 1) if self.is_encoded else -(lengths // -self._size)

    def tokens_that_fit(self, ends: Ints) -> Ints:
        """Return the most tokens that rows can have whose blocks end at `ends`."""
        return (ends + 1) * self._size - 1 if self.is_encoded else ends * self._size

    def trim(self, held: Ints) -> None:
        """Free the tiles of which the next token's window sees nothing any more; held: tokens of each row in the cache."""
        if not self._window:
            return
        first = np.minimum((held - self._window + 1) // self._size, self.end)
        for row in np.flatnonzero(first > self.first).tolist():
            self._free_blocks(row, int(self.first[row]), int(first[row]))
            self.first[row] = first[row]

    def wanted(self, ends: Ints) -> int:
        """Return how many more tiles the rows need for their blocks to end at `ends`."""
        return int(np.maximum(ends - self.end, 0).sum()) * self.heads

    def grow(self, ends: Ints) -> None:
        """Give each row the tiles that it lacks for its blocks to end at `ends`; enough are free."""
        for row in np.flatnonzero(ends > self.end).tolist():
            begin, end = int(self.end[row]), int(ends[row])
            count = (end - begin) * self.heads
            self.free_count -= count
            ids = self._free[self.free_count : self.free_count + count][::-1].reshape(-1, self.heads).T
            self._table[self._layers, row, : self.heads, begin:end] = ids
            self.end[row] = end

    def wanted_at_most(self, lengths: Ints) -> int:
        """Return how many more tiles the rows need at most to reach `lengths` tokens, if windows free all that they can."""
        wanted = np.minimum(self.ends_for(lengths) - self.base, self._most_blocks)
        return int(np.maximum(wanted - (self.end - self.first), 0).sum()) * self.heads

    def attach(self, row: int, tiles: Table) -> None:
        """Append `tiles` [heads, n] that a prefix owns to the row, which has no tiles of its own yet."""
        begin = int(self.end[row])
        end = begin + tiles.shape[1]
        self._table[self._layers, row, : self.heads, begin:end] = tiles
        self.end[row] = self._shared[row] = end

    def give_to_prefix(self, row: int, end: int) -> Table:
        """Let a prefix own the row's blocks up to `end`; return the tiles [heads, n] that no prefix owned before."""
        begin = int(self._shared[row])
        self._shared[row] = end
        return self._table[self._layers[0], row, : self.heads, begin:end].copy()

    def take_back(self, tiles: Table) -> None:
        """Free `tiles` [heads, n] that a prefix owned."""
        self._free_tiles(tiles.T.ravel())

    def release(self, row: int) -> None:
        """Free the tiles that the row owns."""
        self._free_blocks(row, max(int(self.first[row]), int(self._shared[row])), int(self.end[row]))
        self.first[row] = self.end[row] = self._shared[row] = self.base

    def _free_blocks(self, row: int, begin: int, end: int) -> None:
        self._free_tiles(self._table[self._layers[0], row, : self.heads, begin:end].T.ravel())

    def _free_tiles(self, ids: Table) -> None:
        self._free[self.free_count : self.free_count + len(ids)] = ids[::-1]
        self.free_count += len(ids)
