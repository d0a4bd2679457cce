"""Which cache tile holds which tokens: the tables the decoder graph reads, and the free tiles behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact import Cache, CacheLayer

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Sizes that stay fixed while an engine is loaded.

    rows: requests in one step. context: tokens of one request. step_tokens: tokens of all rows in one step.
    logit_rows: logits of one step. tiles: tiles in each layer's pool.
    """

    rows: int
    context: int
    step_tokens: int
    logit_rows: int
    tiles: tuple[int, ...]


def plan_tiles(cache: Cache, *, rows: int, context: int, step_tokens: int, cache_tokens: int) -> tuple[int, ...]:
    """Return each layer's pool size for `cache_tokens` tokens over all rows.

    A windowed layer needs no more than its window per row and one step's new tokens, so it often gets fewer.
    """
    blocks = min(-(-cache_tokens // cache.tile_tokens), rows * -(-context // cache.tile_tokens))
    sizes = []
    for layer in cache.layers:
        needed = blocks
        if layer.window:
            in_window = (layer.window + cache.tile_tokens - 3) // cache.tile_tokens + 2
            needed = min(blocks, rows * in_window + -(-step_tokens // cache.tile_tokens))
        sizes.append(needed * layer.kv_heads)
    return tuple(sizes)


def pool_bytes(cache: Cache, tiles: Sequence[int]) -> int:
    """Bytes of all pools together."""
    return sum(count * layer.tile_bytes for count, layer in zip(tiles, cache.layers, strict=True))


def fit_cache_tokens(cache: Cache, *, rows: int, context: int, step_tokens: int, budget: int) -> int:
    """Return the most tokens, up to `rows` full contexts, whose pools take at most `budget` bytes; at least one tile."""
    low, high = 1, rows * -(-context // cache.tile_tokens)
    while low < high:
        middle = (low + high + 1) // 2
        tokens = middle * cache.tile_tokens
        tiles = plan_tiles(cache, rows=rows, context=context, step_tokens=step_tokens, cache_tokens=tokens)
        low, high = (middle, high) if pool_bytes(cache, tiles) <= budget else (low, middle - 1)
    return low * cache.tile_tokens


class TileTables:
    """Tables of the rows' tiles, updated in place; the scheduler creates one and alone changes it.

    held[rows] int64: tokens that each row has in the cache.
    kv_lens[layers, rows, heads] int32 and tile_table[layers, rows, heads, tiles] int32: the graph's inputs.
    """

    def __init__(self, cache: Cache, capacity: Capacity) -> None:
        layers, heads = len(cache.layers), max(layer.kv_heads for layer in cache.layers)
        self.held: Ints = np.zeros(capacity.rows, np.int64)
        self.kv_lens = np.zeros((layers, capacity.rows, heads), np.int32)
        self.tile_table = np.zeros((layers, capacity.rows, heads, -(-capacity.context // cache.tile_tokens)), np.int32)
        self._share: Ints | None = None
        self._growth = np.zeros((capacity.rows, heads), np.int32)
        self._room: Ints = np.zeros(capacity.rows, np.int64)  # tokens that the row's tiles hold
        self._tile_tokens = cache.tile_tokens
        members: dict[tuple[CacheLayer, int], list[int]] = {}
        for index, (layer, tiles) in enumerate(zip(cache.layers, capacity.tiles, strict=True)):
            members.setdefault((layer, tiles), []).append(index)
        self._groups = [
            _Group(layer, np.array(indices), tiles, self.tile_table, capacity, cache.tile_tokens)
            for (layer, tiles), indices in members.items()
        ]

    @property
    def longest(self) -> int:
        """Tokens that a row alone can hold."""
        return min(group.longest for group in self._groups)

    @property
    def free_tiles(self) -> tuple[int, ...]:
        """Free tiles per group of layers that advance alike."""
        return tuple(group.free_count for group in self._groups)

    def grow(self, share: Ints) -> bool:
        """Give each row tiles for `share[row]` more tokens; False, and nothing changed, when too few are free."""
        lengths = self.held + share
        if (lengths <= self._room).all():
            return True
        ends = -(lengths // -self._tile_tokens)
        short = [group for group in self._groups if (ends > group.end).any()]
        for group in short:
            group.trim(self.held)
        if not all(group.can_grow(ends) for group in short):
            return False
        for group in short:
            group.grow(ends)
        np.maximum(self._room, ends * self._tile_tokens, out=self._room)
        return True

    def spare(self, rows: Ints) -> int:
        """Return how many tokens each of `rows` can take before one of them needs a tile."""
        return int((self._room - self.held)[rows].min())

    def could_hold(self, lengths: Ints) -> bool:
        """Whether the free tiles would do for every row to reach `lengths[row]` tokens."""
        return all(group.could_hold(lengths) for group in self._groups)

    def advance(self, share: Ints) -> None:
        """Count `share[row]` more tokens as held."""
        if share is not self._share:  # decoding steps bring the same array again and again
            self._share = share
            self._growth = np.repeat(share.astype(np.int32)[:, None], self.kv_lens.shape[2], axis=1)
        self.held += share
        self.kv_lens += self._growth

    def release(self, row: int) -> None:
        """Free every tile of `row`."""
        self.held[row] = self._room[row] = 0
        self.kv_lens[:, row] = 0
        for group in self._groups:
            group.release(row)


class _Group:
    """Layers with equal heads, window and pool size: they advance alike, so one free list serves them all.

    first, end [rows]: row b holds the tiles first[b] .. end[b] - 1 of its context.
    """

    def __init__(
        self, layer: CacheLayer, layers: Ints, tiles: int, table: NDArray[np.int32], capacity: Capacity, size: int
    ) -> None:
        self._heads, self._window, self._size = layer.kv_heads, layer.window, size
        self._layers = layers
        self._table = table
        self._free = np.arange(tiles, dtype=np.int32)[::-1].copy()
        self._peak = (layer.window + capacity.step_tokens + size - 3) // size + 1 if layer.window else table.shape[3]
        self.free_count = tiles
        self.first: Ints = np.zeros(capacity.rows, np.int64)
        self.end: Ints = np.zeros(capacity.rows, np.int64)

    @property
    def longest(self) -> int:
        blocks = len(self._free) // self._heads
        return self._table.shape[3] * self._size if blocks >= self._peak else blocks * self._size

    def trim(self, held: Ints) -> None:
        """Free the tiles wholly behind the window of the next token."""
        if not self._window:
            return
        first = np.minimum((held - self._window + 1) // self._size, self.end)
        for row in np.flatnonzero(first > self.first).tolist():
            self._push(row, int(self.first[row]), int(first[row]))
            self.first[row] = first[row]

    def can_grow(self, ends: Ints) -> bool:
        return int(np.maximum(ends - self.end, 0).sum()) * self._heads <= self.free_count

    def grow(self, ends: Ints) -> None:
        for row in np.flatnonzero(ends > self.end).tolist():
            begin, end = int(self.end[row]), int(ends[row])
            count = (end - begin) * self._heads
            self.free_count -= count
            ids = self._free[self.free_count : self.free_count + count][::-1].reshape(-1, self._heads).T
            self._table[self._layers, row, : self._heads, begin:end] = ids
            self.end[row] = end

    def could_hold(self, lengths: Ints) -> bool:
        wanted = np.minimum(-(lengths // -self._size), self._peak)
        return int(np.maximum(wanted - (self.end - self.first), 0).sum()) * self._heads <= self.free_count

    def release(self, row: int) -> None:
        self._push(row, int(self.first[row]), int(self.end[row]))
        self.first[row] = self.end[row] = 0

    def _push(self, row: int, begin: int, end: int) -> None:
        ids = self._table[self._layers[0], row, : self._heads, begin:end].T.ravel()
        self._free[self.free_count : self.free_count + len(ids)] = ids[::-1]
        self.free_count += len(ids)
