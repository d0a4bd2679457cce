"""The tile tables of an engine whose cache policy evicts tiles, each layer and KV head for itself."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from enginewright.runtime.artifact.manifest import Cache
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.head_pool import HeadPool
from enginewright.runtime.cache.policy import (
    NEVER,
    CachePolicy,
    CacheSession,
    Mask,
    StoredRow,
    governed_layers,
    open_policy,
)
from enginewright.runtime.cache.tile_pool import TilePool
from enginewright.runtime.cache.tile_tables import Ints, TileTables
from enginewright.runtime.errors import ExtensionError

_KEPT = 1024


def open_tables(cache: Cache, capacity: Capacity) -> TileTables:
    """Return the tables of an engine: PolicyTables where its cache has a policy, otherwise TileTables."""
    policy = open_policy(cache)
    return TileTables(cache, capacity) if policy is None else PolicyTables(cache, capacity, policy)


class PolicyTables(TileTables):
    """TileTables whose rows evict tiles where the policy says so; created by `open_tables`.

    Every layer without a window has a pool of its own, because layers let go of tiles at different times.
    """

    def __init__(self, cache: Cache, capacity: Capacity, policy: CachePolicy) -> None:
        self._policy = policy
        self._governed = governed_layers(cache)
        self._pools: list[HeadPool] = []
        super().__init__(cache, capacity)
        self._context = capacity.context
        self._due: Ints = np.full(capacity.rows, NEVER, np.int64)  # processed tokens at which each row evicts next
        self._prompts: Ints = np.zeros(capacity.rows, np.int64)  # tokens of each row's prompt
        self._has_evicted = np.zeros(capacity.rows, np.bool_)
        self._most_tiles = lru_cache(maxsize=_KEPT)(self._tiles_at_most)
        for pool, most in zip(self._pools, self._most_tiles(capacity.context, capacity.context), strict=True):
            pool.most = most[: pool.heads]

    def tokens_before_tiles(self, rows: Ints) -> int:
        """Return how many tokens each of `rows` can take before one of them needs a tile, or is due."""
        return min(super().tokens_before_tiles(rows), int((self._due - self.held)[rows].min()))

    def tokens_before_due(self, row: int) -> int:
        """Return how many tokens `row` can take before it evicts; a step brings it no more."""
        return int(self._due[row] - self.held[row])

    def admit(self, row: int, keys: list[bytes], lengths: Ints, prompt_tokens: int) -> int | None:
        """Give the empty `row` the known tiles of a prompt, as far as they lie before its first eviction."""
        self._prompts[row] = prompt_tokens
        first = self._next_due(row)
        for each in np.flatnonzero(lengths).tolist():
            tiles = self._most_tiles(int(self._prompts[each]), self._whole_tiles(int(lengths[each])))
            for pool, peak in zip(self._pools, tiles, strict=True):
                pool.peak[each] = peak[: pool.heads]
        if self._span:
            keys = keys[: (first - 1) // self._span]
        reused = super().admit(row, keys, lengths, prompt_tokens)
        if reused is None:
            self._prompts[row] = 0
            for pool in self._pools:
                pool.peak[row] = 0
        else:
            self._due[row] = first
        return reused

    def publish(self, row: int, key: bytes) -> bool:
        """Let other rows find the next span of `row`; False where an equal one is known, or once the row has evicted."""
        return not self._has_evicted[row] and super().publish(row, key)

    def release(self, row: int) -> None:
        """Let `row` go of every tile; tiles of prefixes stay until they are needed elsewhere."""
        super().release(row)
        self._due[row] = NEVER
        self._prompts[row] = 0
        self._has_evicted[row] = False

    def evict_due(self, session: CacheSession) -> None:
        """Let the rows that are due evict what the policy does not keep; to be called after every step.

        Raises:
            ExtensionError: the policy's answer has another shape, or breaks its own bounds.
        """
        due = np.flatnonzero(self.held >= self._due).tolist()
        if not due:
            return
        rows = [self._stored_row(row) for row in due]
        assert all(each.processed == self._due[each.row] for each in rows), "a step ends where a row is due"
        masks = self._policy.keep(rows, session)
        if len(masks) != len(rows):
            raise ExtensionError(f"{self._name}: keep: got {len(masks)} masks, expected {len(rows)}, one for each row")
        for each, mask in zip(rows, masks, strict=True):
            self._evict(each, mask)

    def _make_groups(self, cache: Cache, capacity: Capacity) -> list[TilePool]:
        """Return the pools of the windowed layers, and a pool of its own for each of the others."""
        windowed = [index for index, layer in enumerate(cache.layers) if layer.window]
        for index in self._governed:
            pool = HeadPool(
                cache.layers[index],
                index,
                capacity.tiles[index],
                self.tile_table,
                rows=capacity.rows,
                step_tokens=capacity.step_tokens,
                size=cache.tile_tokens,
            )
            self._pools.append(pool)
        return [*self._pools, *self._pools_of(cache, capacity, windowed)]

    @property
    def _name(self) -> str:
        return type(self._policy).__name__

    def _idle_tiles(self, group: int) -> int:
        pool = self._groups[group]
        return pool.idle_tiles if isinstance(pool, HeadPool) else super()._idle_tiles(group)

    def _stored_row(self, row: int) -> StoredRow:
        """Return the row as the policy sees it."""
        shape = len(self._pools), self.kv_lens.shape[2]
        stored = np.zeros(shape, np.int64)
        tiles = np.zeros((*shape, self.tile_table.shape[3]), np.int32)
        for layer, pool in enumerate(self._pools):
            stored[layer, : pool.heads] = self.held[row] - self.tile_tokens * pool.evicted[row]
            tiles[layer, : pool.heads] = pool.blocks[row]
        return StoredRow(
            row=row,
            prompt_tokens=int(self._prompts[row]),
            processed=int(self.held[row]),
            stored=stored,
            tiles=tiles,
            tile_tokens=self.tile_tokens,
        )

    def _evict(self, row: StoredRow, mask: Mask) -> None:
        """Let a row's heads go of the full tiles that `mask` does not have, and note when the row is due next."""
        whole, width = row.whole_tiles, self.tile_table.shape[3]
        wide = np.ones((*whole.shape, width), np.bool_)  # an unfinished tile stays
        full = int(whole.max())
        try:
            wide[..., :full] = np.broadcast_to(np.asarray(mask, np.bool_), (*whole.shape, full))
        except ValueError as e:
            raise ExtensionError(
                f"{self._name}: keep: got a mask of shape {np.shape(mask)}, expected one that broadcasts to "
                f"{(*whole.shape, full)}: layers, heads, full tiles"
            ) from e
        wide |= np.arange(width) >= whole[..., None]
        gone = sum([pool.evict(row.row, kept[: pool.heads]) for pool, kept in zip(self._pools, wide, strict=True)])
        if gone:
            self.tile_changes += 1
            for layer, pool in zip(self._governed, self._pools, strict=True):
                self.kv_lens[layer, row.row, : pool.heads] = row.processed - self.tile_tokens * pool.evicted[row.row]
            if not self._has_evicted[row.row]:
                self._has_evicted[row.row] = True
                self._leave_prefixes(row.row)
        self._due[row.row] = self._next_due(row.row)

    def _next_due(self, row: int) -> int:
        """Return the processed tokens at which `row` is due next, after a check that its tiles suffice until then."""
        seen = self._stored_row(row)
        due = self._policy.next_due(seen)
        if due is not None and due <= seen.processed:
            raise ExtensionError(
                f"{self._name}: next_due: got {due}, expected more than the {seen.processed} tokens processed"
            )
        until = self._context if due is None else min(due, self._context)
        needed = -(-(seen.stored + until - seen.processed) // self.tile_tokens)
        most = self._most_tiles(seen.prompt_tokens, self._whole_tiles(until))
        over = [pool for i, pool in enumerate(self._pools) if (needed[i] > most[i])[: pool.heads].any()]
        if over:
            raise ExtensionError(
                f"{self._name}: next_due: got {due} at {seen.processed} tokens, when up to {int(needed.max())} tiles of a "
                f"head are stored, expected no more than most_stored allows, {int(most.min())} at least"
            )
        return NEVER if due is None else due

    def _tiles_at_most(self, prompt_tokens: int, tokens: int) -> Ints:
        """Return the most tiles of a request while it processes `tokens` tokens, int64 [layers, heads]."""
        shape = len(self._pools), self.kv_lens.shape[2]
        most = np.minimum(self._policy.most_stored(prompt_tokens, tokens), tokens)
        return np.broadcast_to(-(-most // self.tile_tokens), shape)

    def _whole_tiles(self, tokens: int) -> int:
        """`tokens` rounded up to whole tiles, so that few different questions are asked."""
        return -(-tokens // self.tile_tokens) * self.tile_tokens
