"""The tiles of one layer whose KV heads may keep different tokens: those that are free, and those of each row and head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import CacheLayer
from enginewright.runtime.cache.policy import NEVER
from enginewright.runtime.cache.policy_bounds import tiles_for
from enginewright.runtime.cache.tile_pool import Ints, Table, TilePool


class HeadPool(TilePool):
    """A TilePool of a single layer under a cache policy; created by PolicyTables.

    Where tiles are encoded, the first tile of a head and its unfinished one lie elsewhere, and are not counted here.

    A head stores what the row has processed, without the tokens that it has evicted; its tiles have no gaps. So `end` is a
    number of tokens here, the most that the row may have processed before a head lacks a tile. A tile counts the rows that
    have it in their tables, and the prefix that has it; it is free when none is left. A row that evicts a tile of a prefix
    leaves it to the others.

    gone[rows, heads] int64: tokens that each head has evicted; PolicyTables changes it.
    count[rows, heads] int64: tiles of each head; the same.
    steps_encode: whether steps take tiles where they are encoded; RecordTables, which encodes between steps, sets it to False.
    spare: tiles that a row's eviction needs in addition, for copies; set by PolicyTables.
    peak[rows, heads], peak_of_row[rows] int64: the most tiles of each row's own request, as far as it is known, of a head
        and of all heads together; set by PolicyTables.
    """

    def __init__(
        self, layer: CacheLayer, index: int, tiles: int, table: Table, *, rows: int, step_tokens: int, size: int
    ) -> None:
        super().__init__(layer, np.array([index]), tiles, table, rows=rows, step_tokens=step_tokens, size=size)
        self.gone: Ints = np.zeros((rows, layer.kv_heads), np.int64)
        self.count: Ints = np.zeros((rows, layer.kv_heads), np.int64)
        self.spare = 0
        self.steps_encode = True
        self.peak: Ints = np.zeros((rows, layer.kv_heads), np.int64)
        self.peak_of_row: Ints = np.zeros(rows, np.int64)
        self._ids = table[index, :, : layer.kv_heads, self.base :]  # a view, [rows, heads, tiles]
        self._uses: NDArray[np.int32] = np.zeros(tiles, np.int32)
        self._of_prefix: NDArray[np.bool_] = np.zeros(tiles, np.bool_)
        self.end[:] = self.tokens_without_tiles

    @property
    def tokens_without_tiles(self) -> int:
        """The most tokens that a row can process before it needs a tile of this pool."""
        if not self.steps_encode:
            return NEVER
        return 2 * self._size - 1 if self.is_encoded else 0

    @property
    def longest(self) -> int:
        """The most tokens that a row can process without an eviction, when no other row holds any."""
        tiles = int(min(self._ids.shape[2], self.most // self.heads))
        return (tiles + self.base) * self._size

    @property
    def most(self) -> int:
        """The most tiles that a row can have when no other row holds any, as its evictions need the spare ones."""
        return len(self._free) - self.spare

    @property
    def idle_tiles(self) -> int:
        """Number of tiles that a prefix has, and no row."""
        return int(np.count_nonzero(self._of_prefix & (self._uses == 1)))

    def ends_for(self, lengths: Ints) -> Ints:
        """Return the tokens that the rows' tiles must be enough for: all of them."""
        return lengths

    def tokens_that_fit(self, ends: Ints) -> Ints:
        """Return the most tokens that rows can have processed: those of `end`, which are tokens already."""
        return ends

    def wanted(self, ends: Ints) -> int:
        """Return how many more tiles the rows need until they have processed `ends` tokens."""
        return int(self._lacking(ends).sum())

    def grow(self, ends: Ints) -> None:
        """Give each head of each row the tiles that it lacks until the row has processed `ends` tokens; enough are free."""
        lacking = self._lacking(ends)
        for row in np.flatnonzero(lacking.any(axis=1)).tolist():
            most = int(lacking[row].max())
            wants = np.arange(most)[:, None] < lacking[row]  # by blocks, so that the order is that of TilePool
            ids = np.zeros(wants.shape, np.int32)
            ids[wants] = self.take(int(wants.sum()))
            for head, number in enumerate(lacking[row].tolist()):
                begin = int(self.count[row, head])
                self._ids[row, head, begin : begin + number] = ids[:number, head]
            self.count[row] += lacking[row]
            self.set_end(row)

    def wanted_at_most(self, lengths: Ints) -> int:
        """Return how many more tiles the rows need at most while they process `lengths` tokens, evicting as planned."""
        needed = np.minimum(tiles_for(lengths, self.is_encoded, self._size)[:, None], self.peak)
        each = np.maximum(needed - self.count, 0).sum(axis=1)
        return int(np.minimum(each, np.maximum(self.peak_of_row - self.count.sum(axis=1), 0)).sum())

    def attach(self, row: int, tiles: Table) -> None:
        """Append `tiles` [heads, n] of a prefix to the row, which has no tiles of its own and has evicted nothing."""
        begin = int(self.count[row, 0])
        self._ids[row, :, begin : begin + tiles.shape[1]] = tiles
        self._uses[tiles] += 1
        self.count[row] += tiles.shape[1]
        self._shared[row] = self.base + begin + tiles.shape[1]
        self.set_end(row)

    def give_to_prefix(self, row: int, end: int) -> Table:
        """Let a prefix have the row's tiles up to `end` as well; return the tiles [heads, n] that none had before."""
        assert not self.gone[row].any(), "a row publishes only what lies before its first eviction"
        tiles = super().give_to_prefix(row, end)
        self._uses[tiles] += 1
        self._of_prefix[tiles] = True
        return tiles

    def take_back(self, tiles: Table) -> None:
        """Let go of `tiles` [heads, n] that a prefix had; those that are in no row's table are free."""
        ids = tiles.T.ravel()
        self._of_prefix[ids] = False
        self.let_go(ids)

    def release(self, row: int) -> None:
        """Let the row go of all its tiles."""
        has = (
            np.arange(self._ids.shape[2])[:, None] < self.count[row]
        )  # by blocks, so that the order is that of TilePool
        self.let_go(self._ids[row].T[has])
        self.first[row] = self._shared[row] = self.base
        self.count[row] = self.gone[row] = self.peak[row] = 0
        self.peak_of_row[row] = 0
        self.set_end(row)

    def _lacking(self, ends: Ints) -> Ints:
        """Return how many tiles each head of each row lacks until the row has processed `ends` tokens."""
        if not self.steps_encode:
            return np.zeros_like(self.count)
        needed = tiles_for(ends[:, None] - self.gone, self.is_encoded, self._size)
        lacking: Ints = np.maximum(needed - self.count, 0)
        return lacking

    def ids_of(self, row: int) -> Table:
        """Return the tiles of the row's heads, a view [heads, tiles] of the table; after `count` they mean nothing."""
        ids: Table = self._ids[row]
        return ids

    def set_end(self, row: int) -> None:
        """Note how many tokens the row's tiles are enough for, after `count` or `gone` has changed."""
        self.end[row] = (self.count[row] * self._size + self.gone[row]).min() + self.tokens_without_tiles

    def take(self, count: int) -> Table:
        """Return free tiles, which have one user now."""
        self.free_count -= count
        ids = self._free[self.free_count : self.free_count + count][::-1].copy()
        self._uses[ids] = 1
        return ids

    def let_go(self, ids: Table) -> None:
        """Count one user less of each of `ids`, which are distinct, and free those that have none left."""
        self._uses[ids] -= 1
        self._free_tiles(ids[self._uses[ids] == 0])
