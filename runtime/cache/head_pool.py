"""The tiles of one layer whose KV heads may keep different ones: those that are free, and those of each row and head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import CacheLayer
from enginewright.runtime.cache.tile_pool import Ints, Table, TilePool


class HeadPool(TilePool):
    """A TilePool of a single layer under a cache policy; created by PolicyTables.

    Blocks are counted as the request processes them, so all heads of a row reach the same `end`. A head has those of them
    that it has not evicted, in ascending order and without gaps in the table. A tile counts the rows that have it in
    their tables, and the prefix that has it; it is free when none is left. So a row that evicts a tile of a prefix leaves
    it to the others, and nothing is copied.

    evicted[rows, heads] int64: number of blocks that each head has evicted.
    blocks[rows, heads, tiles] int32: the block that each entry of the table holds.
    most[heads] int64: the most tiles of a row at any time; set by PolicyTables.
    peak[rows, heads] int64: the same for each row's own request, as far as it is known; set by PolicyTables.
    """

    def __init__(
        self, layer: CacheLayer, index: int, tiles: int, table: Table, *, rows: int, step_tokens: int, size: int
    ) -> None:
        super().__init__(layer, np.array([index]), tiles, table, rows=rows, step_tokens=step_tokens, size=size)
        self.evicted: Ints = np.zeros((rows, layer.kv_heads), np.int64)
        self.blocks: Table = np.zeros((rows, layer.kv_heads, table.shape[3]), np.int32)
        self.most: Ints = np.full(layer.kv_heads, table.shape[3], np.int64)
        self.peak: Ints = np.zeros((rows, layer.kv_heads), np.int64)
        self._ids = table[index, :, : layer.kv_heads]  # a view, [rows, heads, tiles]
        self._uses: NDArray[np.int32] = np.zeros(tiles, np.int32)
        self._of_prefix: NDArray[np.bool_] = np.zeros(tiles, np.bool_)

    @property
    def longest(self) -> int:
        """The most tokens that a row can process when no other row holds any."""
        tiles, whole = len(self._free), self._ids.shape[2]
        return int(whole if tiles >= self.most.sum() else min(whole, tiles // self.heads)) * self._size

    @property
    def idle_tiles(self) -> int:
        """Number of tiles that a prefix has, and no row."""
        return int(np.count_nonzero(self._of_prefix & (self._uses == 1)))

    def owned(self) -> Ints:
        """Return the number of tiles in the tables of each row and head, int64 [rows, heads]."""
        return self.end[:, None] - self.evicted

    def grow(self, ends: Ints) -> None:
        """Give each head of each row the tiles that it lacks for its blocks to end at `ends`; enough are free."""
        for row in np.flatnonzero(ends > self.end).tolist():
            begin, end = int(self.end[row]), int(ends[row])
            count = (end - begin) * self.heads
            self.free_count -= count
            ids = self._free[self.free_count : self.free_count + count][::-1].reshape(-1, self.heads).T
            self._append(row, ids)
            self._uses[ids] = 1

    def wanted_at_most(self, lengths: Ints) -> int:
        """Return how many more tiles the rows need at most while they process `lengths` tokens, evicting as planned."""
        needed = np.minimum(self.ends_for(lengths)[:, None], self.peak)
        return int(np.maximum(needed - self.owned(), 0).sum())

    def attach(self, row: int, tiles: Table) -> None:
        """Append `tiles` [heads, n] of a prefix to the row, which has no tiles of its own yet."""
        self._append(row, tiles)
        self._uses[tiles] += 1
        self._shared[row] = self.end[row]

    def give_to_prefix(self, row: int, end: int) -> Table:
        """Let a prefix have the row's blocks up to `end` as well; return the tiles [heads, n] that none had before."""
        assert not self.evicted[row].any(), "a row publishes only what lies before its first eviction"
        tiles = super().give_to_prefix(row, end)
        self._uses[tiles] += 1
        self._of_prefix[tiles] = True
        return tiles

    def take_back(self, tiles: Table) -> None:
        """Let go of `tiles` [heads, n] that a prefix had; those that are in no row's table are free."""
        ids = tiles.T.ravel()
        self._of_prefix[ids] = False
        self._let_go(ids)

    def evict(self, row: int, kept: NDArray[np.bool_]) -> int:
        """Let the row's heads go of the tiles that are not kept, and close the gaps; return how many left the tables.

        kept: bool [heads, n], where n is at least the number of tiles of each head; entries after a head's own mean nothing.
        """
        count = self.end[row] - self.evicted[row]
        width = int(count.max(initial=0))
        gone = ~kept[:, :width] & (np.arange(width) < count[:, None])
        ids, blocks = self._ids[row, :, :width], self.blocks[row, :, :width]
        left = ids[gone]
        order = np.argsort(gone, axis=1, kind="stable")  # those that stay first, in their order
        ids[...] = np.take_along_axis(ids, order, 1)
        blocks[...] = np.take_along_axis(blocks, order, 1)
        self.evicted[row] += gone.sum(axis=1)
        self._let_go(left)
        return len(left)

    def release(self, row: int) -> None:
        """Let the row go of all its tiles."""
        count = self.end[row] - self.evicted[row]
        has = np.arange(self._ids.shape[2])[:, None] < count  # by blocks, so that the order is that of TilePool
        self._let_go(self._ids[row].T[has])
        self.first[row] = self.end[row] = self._shared[row] = self.base
        self.evicted[row] = self.peak[row] = 0

    def _append(self, row: int, ids: Table) -> None:
        """Enter the tiles `ids` [heads, n] of the row's next blocks into the tables."""
        begin = int(self.end[row])
        blocks = np.arange(begin, begin + ids.shape[1])
        places = blocks - self.evicted[row][:, None]
        np.put_along_axis(self._ids[row], places, ids, 1)
        np.put_along_axis(self.blocks[row], places, np.broadcast_to(blocks, ids.shape).astype(np.int32), 1)
        self.end[row] = begin + ids.shape[1]

    def _let_go(self, ids: Table) -> None:
        """Count one user less of each of `ids`, which are distinct, and free those that have none left."""
        self._uses[ids] -= 1
        self._free_tiles(ids[self._uses[ids] == 0])
