"""The tables that tell the decoder graph which cache tiles hold which tokens, and the tiles that are free.

Here every token stays, as long as its layer's window sees it. `policy_tables.py` has the tables of caches that evict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import Cache, CacheLayer
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.policy import NEVER, CacheSession
from enginewright.runtime.cache.prefix_cache import Prefix, PrefixCache
from enginewright.runtime.cache.tile_pool import TilePool

Ints = NDArray[np.int64]


class TileTables:
    """Tables of the rows' tiles, updated in place; created by `load`, and changed by the scheduler alone.

    held[rows] int64: tokens of each row that have been processed: the position of its next one, in every layer.
    kv_lens[layers, rows, heads] int32: tokens that each layer and head has stored, an input of the graph. Here that is
        `held`; under a cache policy it may be less. Of a layer with fewer heads the first entries count.
    tile_table[layers, rows, heads, tiles] int32: numbers of the tiles that hold each row's tokens, an input of the graph.
    encoded_lens[2, layers, rows, heads] int32: tokens in encoded tiles before and after the next step, an input of the
        graph. The first tile counts as encoded; for layers that encode no tiles the entries are 0.
    sink_copies: pairs of rows (from, to); the next step copies the exact first tile of one to the other before all else.
    tile_tokens: tokens in a tile.
    tile_changes: a count that grows whenever tile_table may have changed.
    """

    def __init__(self, cache: Cache, capacity: Capacity) -> None:
        layers, heads = len(cache.layers), max(layer.kv_heads for layer in cache.layers)
        tiles = -(-capacity.context // cache.tile_tokens)
        self.held: Ints = np.zeros(capacity.rows, np.int64)
        self.kv_lens = np.zeros((layers, capacity.rows, heads), np.int32)
        self.encoded_lens = np.zeros((2, layers, capacity.rows, heads), np.int32)
        self.tile_table = np.zeros((layers, capacity.rows, heads, tiles), np.int32)
        self.sink_copies: list[tuple[int, int]] = []
        self._last_step: Ints | None = None
        self._growth = np.zeros((capacity.rows, heads), np.int32)
        self.tile_tokens, self._span = cache.tile_tokens, capacity.span
        self._groups = self._make_groups(cache, capacity)
        self._encoding = np.array([i for i, layer in enumerate(cache.layers) if layer.exact_bytes], np.int64)
        self._encoded: Ints = np.zeros(capacity.rows, np.int64)
        self._encodes = False  # whether the next step encodes tiles
        self.tile_changes = 0
        self._held_capacity = self._capacity_of_rows()  # the most tokens that each row's tiles can hold
        self._prefixes = PrefixCache(len(self._groups))
        self._used: list[list[Prefix]] = [[] for _ in range(capacity.rows)]
        self._tiles = self.free_tiles

    def longest_for(self, prompt_tokens: int) -> int:
        """Return the most tokens that a row can process when no other row holds any.

        prompt_tokens: tokens of its prompt, 0 for a text that is scored; here they make no difference.
        """
        return min(group.longest for group in self._groups)

    @property
    def free_tiles(self) -> tuple[int, ...]:
        """Tiles that no row uses, for each group of layers that advance together."""
        return tuple(group.free_count + self._idle_tiles(i) for i, group in enumerate(self._groups))

    @property
    def use(self) -> float:
        """Share of the tiles that rows use, 0 to 1, in the group that has the smallest share left."""
        return max(1 - free / total for free, total in zip(self.free_tiles, self._tiles, strict=True))

    def grow(self, new_tokens: Ints) -> bool:
        """Give each row tiles for `new_tokens[row]` more tokens; return False when too few are free.

        Then no row has got any; only tiles that windows no longer see may have been freed.
        """
        lengths = self.held + new_tokens
        if (lengths <= self._held_capacity).all():
            return True
        ends = [group.ends_for(lengths) for group in self._groups]
        wanted = [group.wanted(end) for group, end in zip(self._groups, ends, strict=True)]
        for group, count in zip(self._groups, wanted, strict=True):
            if count:
                group.trim(self.held)
        if not self._can_free(wanted):
            return False
        for group, end, count in zip(self._groups, ends, wanted, strict=True):
            while count > group.free_count:
                self._take_back(self._prefixes.evict())
            if count:
                group.grow(end)
        self._held_capacity = self._capacity_of_rows()
        self._encode_to(lengths // self.tile_tokens * self.tile_tokens)
        return True

    def tokens_before_tiles(self, rows: Ints) -> int:
        """Return how many tokens each of `rows` can take before one of them needs a tile."""
        return int((self._held_capacity - self.held)[rows].min())

    def tokens_before_due(self, row: int) -> int:
        """Return how many tokens `row` can take before it evicts: here as many as it may ever have."""
        return NEVER

    def evict_due(self, session: CacheSession) -> int | None:
        """Let the rows that are due evict tokens, and return one that needs more free tiles for it: here none ever is."""
        return None

    def advance(self, new_tokens: Ints) -> None:
        """Count `new_tokens[row]` more tokens of each row as processed and stored."""
        if new_tokens is not self._last_step:  # steps that only decode pass the same array again and again
            self._last_step = new_tokens
            self._growth = np.repeat(new_tokens.astype(np.int32)[:, None], self.kv_lens.shape[2], axis=1)
        self.held += new_tokens
        self.kv_lens += self._growth
        if self._encodes:
            self.encoded_lens[0] = self.encoded_lens[1]
            self._encodes = False

    def pick_row(self, free: Sequence[int], keys: list[bytes]) -> int:
        """Return the row out of `free` that suits a prompt of these keys best.

        That is a row that holds the prompt's first tile. Otherwise it is a row whose exact first tile no prompt needs, or the
        row whose first tile has been unused longest.
        """
        found = self._prefixes.find(keys[:1])
        holders = found[0].sink_rows if found else set[int]()
        needed = {row: rank for rank, row in enumerate(self._prefixes.sole_sinks, 1)}
        return min(free, key=lambda row: (row not in holders, needed.get(row, 0), row))

    def admit(self, row: int, keys: list[bytes], lengths: Ints, prompt_tokens: int) -> int | None:
        """Give the empty `row` the known tiles of a prompt of these keys, and return how many tokens they hold.

        Return None, and change nothing, when too few tiles are free for every row to reach `lengths[row]` tokens.

        prompt_tokens: tokens of the row's prompt, without those generated before a preemption; 0 for a text that is scored.
            Cache policies go by it.
        """
        found = self._prefixes.find(keys)
        in_use = [sum(prefix.tiles[i].size for prefix in found if prefix.users) for i in range(len(self._groups))]
        wanted = [group.wanted_at_most(lengths) for group in self._groups]
        if not self._can_free([count - known for count, known in zip(wanted, in_use, strict=True)]):
            return None
        holders = found[0].sink_rows if found else set[int]()
        if row not in holders:
            self._take_back(self._prefixes.lose_sink(row))
        if not found:
            return 0
        if holders:
            if row not in holders:
                self.sink_copies.append((min(holders), row))
            self._prefixes.hold_sink(row, found[0])
        for prefix in found:
            self._prefixes.use(prefix)
            for group, tiles in zip(self._groups, prefix.tiles, strict=True):
                group.attach(row, tiles)
        self._used[row] = found
        self._set_held(row, len(found) * self._span)
        return len(found) * self._span

    def publish(self, row: int, key: bytes) -> bool:
        """Let other rows find the next span of `row`, which it has computed; return False where an equal one is known."""
        if self._prefixes.find([key]):
            return False
        end = (len(self._used[row]) + 1) * self._span // self.tile_tokens
        prefix = self._prefixes.add(key, [group.give_to_prefix(row, end) for group in self._groups])
        if len(self._encoding) and not self._used[row]:
            self._prefixes.hold_sink(row, prefix)
        self._used[row].append(prefix)
        return True

    def release(self, row: int) -> None:
        """Free every tile of `row`; tiles of prefixes stay until they are needed elsewhere."""
        self._leave_prefixes(row)
        for group in self._groups:
            group.release(row)
        self._set_held(row, 0)

    def _make_groups(self, cache: Cache, capacity: Capacity) -> list[TilePool]:
        """Return the pools, each for layers that need the same number of tiles at all times."""
        return self._pools_of(cache, capacity, range(len(cache.layers)))

    def _pools_of(self, cache: Cache, capacity: Capacity, layers: Iterable[int]) -> list[TilePool]:
        """Return one pool for all those of `layers` that have the same description and number of tiles."""
        members: dict[tuple[CacheLayer, int], list[int]] = {}
        for index in layers:
            members.setdefault((cache.layers[index], capacity.tiles[index]), []).append(index)
        sizes = {"rows": capacity.rows, "step_tokens": capacity.step_tokens, "size": cache.tile_tokens}
        return [
            TilePool(layer, np.array(indices), count, self.tile_table, **sizes)
            for (layer, count), indices in members.items()
        ]

    def _idle_tiles(self, group: int) -> int:
        """Return the number of tiles of idle prefixes, which could be freed, in a group."""
        return self._prefixes.idle_tiles[group]

    def _leave_prefixes(self, row: int) -> None:
        for prefix in reversed(self._used[row]):  # so that the end of a prompt is evicted before its beginning
            self._prefixes.leave(prefix)
        self._used[row] = []

    def _capacity_of_rows(self) -> Ints:
        self.tile_changes += 1
        least, *others = (group.tokens_that_fit(group.end) for group in self._groups)
        for sizes in others:
            np.minimum(least, sizes, out=least)
        return least

    def _set_held(self, row: int, tokens: int) -> None:
        """Let `row` hold `tokens` tokens, a whole number of tiles."""
        self.held[row] = self._encoded[row] = tokens
        self.kv_lens[:, row] = tokens
        self.encoded_lens[:, self._encoding, row] = tokens
        self._held_capacity = self._capacity_of_rows()

    def _encode_to(self, lengths: Ints) -> None:
        """Tell the next step to encode tiles, until each row has `lengths[row]` tokens in encoded ones."""
        if len(self._encoding) and (lengths != self._encoded).any():
            self._encoded = lengths
            self.encoded_lens[1, self._encoding] = lengths[:, None]
            self._encodes = True

    def _can_free(self, wanted: list[int]) -> bool:
        """Whether each group has as many tiles as wanted of it, free ones and those of idle prefixes together."""
        return all(
            count <= group.free_count or count <= group.free_count + self._idle_tiles(i)
            for i, (group, count) in enumerate(zip(self._groups, wanted, strict=True))
        )

    def _take_back(self, tiles: list[NDArray[np.int32]] | None) -> None:
        for group, ids in zip(self._groups, tiles or (), strict=False):
            group.take_back(ids)
