"""The tile tables of an engine whose cache policy evicts tiles or tokens, each layer and KV head for itself."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from enginewright.runtime.artifact.manifest import Cache
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.eviction_watch import EvictionWatch
from enginewright.runtime.cache.evictions import Eviction, spread
from enginewright.runtime.cache.head_pool import HeadPool
from enginewright.runtime.cache.policy import (
    COMPACT,
    MARKS,
    NEVER,
    CachePolicy,
    CacheSession,
    Mask,
    StoredRow,
    governed_layers,
    queries_of,
)
from enginewright.runtime.cache.policy_bounds import Bounds, tiles_for
from enginewright.runtime.cache.tile_pool import TilePool
from enginewright.runtime.cache.tile_tables import Ints, TileTables
from enginewright.runtime.errors import ExtensionError


class PolicyTables(TileTables):
    """TileTables whose rows evict tiles or tokens where the policy says so; created by `open_tables`.

    Every layer without a window has a pool of its own, because layers let go of tiles at different times.

    watch: measures evictions; None, unless something that measures sets it between two steps.
    """

    def __init__(self, cache: Cache, capacity: Capacity, policy: CachePolicy) -> None:
        self.watch: EvictionWatch | None = None
        self._policy = policy
        self._governed = governed_layers(cache)
        self._pools: list[HeadPool] = []
        super().__init__(cache, capacity)
        self._context = capacity.context
        self._due: Ints = np.full(capacity.rows, NEVER, np.int64)  # processed tokens at which each row evicts next
        self._prompts: Ints = np.zeros(capacity.rows, np.int64)  # tokens of each row's prompt
        self._has_evicted = np.zeros(capacity.rows, np.bool_)
        self._kept: dict[int, tuple[Ints, Ints]] = {}  # of rows that have evicted: `kept` and `left` of their StoredRow
        self._by_tokens = COMPACT in policy.needs
        self._own_tokens = queries_of(policy)
        self._shares = (
            MARKS not in policy.needs
        )  # marks are of one row's queries, so tiles that have them are not shared
        self._bounds = Bounds(policy, cache)
        for layer, pool in enumerate(self._pools):
            pool.spare = int(self._bounds.spare(capacity.context)[layer])

    def longest_for(self, prompt_tokens: int) -> int:
        """Return the most tokens that a row can process, with what it evicts on the way, when no other row holds any."""
        size, others = self.tile_tokens, [group.longest for group in self._groups if not isinstance(group, HeadPool)]
        most = min([self.tile_table.shape[3] * size, *others]) // size
        least = min(most, *(pool.longest // size for pool in self._pools))
        tiles = range(least + 1, most + 1)
        return (least + bisect_left(tiles, True, key=lambda count: not self._fits(prompt_tokens, count * size))) * size

    def grow(self, new_tokens: Ints) -> bool:
        """Give each row tiles for its new tokens, as TileTables does."""
        grown = super().grow(new_tokens)
        if grown and self.watch is not None:
            tiles = [whole - free for whole, free in zip(self._tiles, self.free_tiles, strict=True)]
            layers = [group._layers for group in self._groups]
            self.watch.note_held(list(zip(layers, tiles, strict=True)), self.held + new_tokens)
        return grown

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
            sizes = int(self._prompts[each]), self._whole_tiles(int(lengths[each]))
            heads, rows = self._bounds.of_heads(*sizes), self._bounds.of_row(*sizes)
            for layer, pool in enumerate(self._pools):
                pool.peak[each], pool.peak_of_row[each] = heads[layer, : pool.heads], rows[layer]
        if self._span:
            keys = keys[: max(first - self._own_tokens, 0) // self._span]
        reused = super().admit(row, keys, lengths, prompt_tokens)
        if reused is None:
            self._prompts[row] = 0
            for pool in self._pools:
                pool.peak[row] = pool.peak_of_row[row] = 0
        else:
            self._due[row] = first
        return reused

    def publish(self, row: int, key: bytes) -> bool:
        """Let other rows find the next span of `row`; False where an equal one is known, or once the row has evicted."""
        return self._shares and not self._has_evicted[row] and super().publish(row, key)

    def release(self, row: int) -> None:
        """Let `row` go of every tile; tiles of prefixes stay until they are needed elsewhere."""
        super().release(row)
        self._due[row] = NEVER
        self._prompts[row] = 0
        self._has_evicted[row] = False
        self._kept.pop(row, None)

    def evict_due(self, session: CacheSession) -> int | None:
        """Let the rows that are due evict what the policy does not keep; to be called after every step.

        Return a row that needs more free tiles for its copies than there are: another row has to go, then call it again.

        Raises:
            ExtensionError: the policy's answer has another shape, or breaks its own bounds.
        """
        if (self.held < self._due).all():
            return None
        if self.watch is None:
            return self._evict_rows(session)
        with self.watch.timed():
            return self._evict_rows(session)

    def _evict_rows(self, session: CacheSession) -> int | None:
        """Let the rows that are due evict, of which there are some."""
        due = np.flatnonzero(self.held >= self._due).tolist()
        rows = [self._stored_row(row) for row in due]
        assert all(each.processed == self._due[each.row] for each in rows), "a step ends where a row is due"
        masks = self._policy.keep(rows, session)
        if len(masks) != len(rows):
            raise ExtensionError(f"{self._name}: keep: got {len(masks)} masks, expected {len(rows)}, one for each row")
        for each, mask in zip(rows, masks, strict=True):
            if not self._evict(each, mask, session):
                return each.row
        return None

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
        heads = np.array([pool.heads for pool in self._pools])
        self._has = np.arange(self.kv_lens.shape[2]) < heads[:, None]  # whether a layer has that head
        self._is_encoded = np.array([pool.is_encoded for pool in self._pools])
        self._nothing: Ints = np.zeros(self._has.shape, np.int64)
        self._gone: Ints = np.zeros((len(heads), capacity.rows, self._has.shape[1]), np.int64)
        self._count: Ints = self._gone.copy()
        for layer, pool in enumerate(self._pools):  # the pools' own are views, so that a row's can be read at once
            pool.gone, pool.count = self._gone[layer, :, : pool.heads], self._count[layer, :, : pool.heads]
        return [*self._pools, *self._pools_of(cache, capacity, windowed)]

    @property
    def _name(self) -> str:
        return type(self._policy).__name__

    def _idle_tiles(self, group: int) -> int:
        pool = self._groups[group]
        return pool.idle_tiles if isinstance(pool, HeadPool) else super()._idle_tiles(group)

    def _stored_row(self, row: int) -> StoredRow:
        """Return the row as the policy sees it."""
        kept, left = self._kept.get(row, (self._nothing[..., None][..., :0], self._nothing))
        return StoredRow(
            row=row,
            prompt_tokens=int(self._prompts[row]),
            processed=int(self.held[row]),
            stored=np.where(self._has, self.held[row] - self._gone[:, row], 0),
            kept=kept,
            left=left,
            tile_tokens=self.tile_tokens,
        )

    def _evict(self, row: StoredRow, mask: Mask, session: CacheSession) -> bool:
        """Let a row evict what `mask` does not have; False, and nothing changed, where tiles lack."""
        return self._evict_tokens(row, mask, session) if self._by_tokens else self._evict_tiles(row, mask)

    def _evict_tiles(self, row: StoredRow, mask: Mask) -> bool:
        """Let a row's heads go of the full tiles that `mask` does not have, and note when the row is due next."""
        wide = self._widen(mask, row.whole_tiles, "full tiles", self.tile_table.shape[3])
        wide[self._is_encoded, :, 0] = True
        leaves = ~wide & self._has[..., None]
        if leaves.any():
            size, most = self.tile_tokens, int(row.stored.max())
            stays = ~np.repeat(leaves, size, axis=2)[..., :most] & (np.arange(most) < row.stored[..., None])
            eviction = Eviction.of_tokens(stays, row.stored, self._count[:, row.row], size)
            for layer, pool in enumerate(self._pools):
                ids, gone = pool.ids_of(row.row), leaves[layer, : pool.heads, pool.base :]
                left = ids[gone]
                ids[...] = np.take_along_axis(ids, np.argsort(gone, axis=1, kind="stable"), 1)  # in their order
                pool.let_go(left)
            self._count[:, row.row] -= leaves.sum(axis=2)
            self._remember(row, eviction)
        self._settle(row, changed=bool(leaves.any()))
        return True

    def _evict_tokens(self, row: StoredRow, mask: Mask, session: CacheSession) -> bool:
        """Let a row's heads go of the tokens that `mask` does not have; False, and nothing changed, where tiles lack."""
        stays = self._widen(mask, row.stored, "stored tokens", int(row.stored.max()))
        stays &= np.arange(stays.shape[2]) < row.stored[..., None]
        eviction = Eviction.of_tokens(stays, row.stored, self._count[:, row.row], self.tile_tokens)
        if not eviction.changed.any():
            self._settle(row, changed=False)
            return True
        if not self._free_for_copies(eviction.fresh.sum(axis=1).tolist()):
            return False
        taken = [pool.take(int(each.sum())) for pool, each in zip(self._pools, eviction.fresh, strict=True)]
        governed = list(self._governed)
        table = self.tile_table[governed, row.row]
        try:
            ids = spread(np.concatenate(taken), eviction.fresh)
            moves = eviction.moves(table, ids, self.tile_tokens)
            session.compact(dict(zip(self._governed, moves, strict=True)))
        except BaseException:  # whatever it is, the tiles are free again
            for pool, each in zip(self._pools, taken, strict=True):
                pool.let_go(each)
            raise
        after, left = eviction.tables(table, ids, self._count[:, row.row])
        self.tile_table[governed, row.row] = after
        for pool, each in zip(self._pools, left, strict=True):
            pool.let_go(each)
        self._count[:, row.row] = eviction.begin + eviction.fresh
        self._remember(row, eviction)
        self._settle(row, changed=True)
        return True

    def _remember(self, row: StoredRow, eviction: Eviction) -> None:
        """Note the positions of what stays, and how many tokens have left."""
        gone = np.where(self._has, row.stored - eviction.counts, 0)
        self._gone[:, row.row] += gone
        if self.watch is not None:
            self.watch.tokens += int(gone.sum())
        self._kept[row.row] = eviction.kept(row.all_positions()), eviction.counts
        ends = np.where(self._has, self._count[:, row.row] * self.tile_tokens + self._gone[:, row.row], NEVER)
        for pool, end in zip(self._pools, ends.min(axis=1).tolist(), strict=True):
            pool.end[row.row] = end + pool.tokens_without_tiles

    def _widen(self, mask: Mask, counts: Ints, of: str, width: int) -> Mask:
        """Return the policy's mask as bool [layers, heads, width], where all after a head's own count stays."""
        wide = np.ones((*counts.shape, width), np.bool_)
        most = int(counts.max())
        try:
            wide[..., :most] = np.broadcast_to(np.asarray(mask, np.bool_), (*counts.shape, most))
        except ValueError as e:
            raise ExtensionError(
                f"{self._name}: keep: got a mask of shape {np.shape(mask)}, expected one that broadcasts to "
                f"{(*counts.shape, most)}: layers, heads, {of}"
            ) from e
        wide |= np.arange(width) >= counts[..., None]
        return wide

    def _free_for_copies(self, wanted: list[int]) -> bool:
        """Free as many tiles of each layer as are wanted, by taking those of idle prefixes; False where that is too few."""
        every = [0] * len(self._groups)
        for index, group in enumerate(self._groups):
            if isinstance(group, HeadPool):
                every[index] = wanted[self._pools.index(group)]
        if not self._can_free(every):
            return False
        for group, count in zip(self._groups, every, strict=True):
            while count > group.free_count:
                self._take_back(self._prefixes.evict())
        return True

    def _settle(self, row: StoredRow, *, changed: bool) -> None:
        """Write the tables of a row that has evicted, and note when it is due next."""
        if changed:
            lens = row.processed - self._gone[:, row.row]
            self.kv_lens[list(self._governed), row.row] = np.where(
                self._has, lens, self.kv_lens[list(self._governed), row.row]
            )
            self._set_encoded(row.row, lens // self.tile_tokens * self.tile_tokens)
            self._held_capacity = self._capacity_of_rows()
            if not self._has_evicted[row.row]:
                self._has_evicted[row.row] = True
                self._leave_prefixes(row.row)
        self._due[row.row] = self._next_due(row.row)

    def _encode_to(self, lengths: Ints) -> None:
        """Tell the next step to encode tiles, until each row has `lengths[row]` tokens in encoded ones, or in none any more."""
        super()._encode_to(lengths)
        if self._encodes:
            for layer, pool in enumerate(self._pools):
                if pool.is_encoded:
                    self.encoded_lens[1, self._governed[layer], :, : pool.heads] = lengths[:, None] - pool.gone

    def _set_encoded(self, row: int, lens: Ints) -> None:
        """Note how many tokens each head of a row has in encoded tiles."""
        for layer, pool in enumerate(self._pools):
            if pool.is_encoded:
                self.encoded_lens[:, self._governed[layer], row, : pool.heads] = lens[layer, : pool.heads]

    def _next_due(self, row: int) -> int:
        """Return the processed tokens at which `row` is due next, after a check that its tiles suffice until then."""
        seen = self._stored_row(row)
        due = self._policy.next_due(seen)
        if due is not None and due <= seen.processed:
            raise ExtensionError(
                f"{self._name}: next_due: got {due}, expected more than the {seen.processed} tokens processed"
            )
        until = self._context if due is None else min(due, self._context)
        sizes = seen.prompt_tokens, self._whole_tiles(until)
        most, of_row = self._bounds.of_heads(*sizes), self._bounds.of_row(*sizes)
        needed = self._needed_tiles(seen, until)
        if (needed > most).any() or (needed.sum(axis=1) > of_row).any():
            raise ExtensionError(
                f"{self._name}: next_due: got {due} at {seen.processed} tokens, when up to {int(needed.max())} tiles of a "
                f"head are stored, expected no more than most_stored allows, {int(most.min())} at least"
            )
        return NEVER if due is None else due

    def _needed_tiles(self, seen: StoredRow, until: int) -> Ints:
        """Return the tiles that each head of a row has when it has processed `until` tokens, int64 [layers, heads]."""
        grown = seen.stored + until - seen.processed
        return np.where(self._has, tiles_for(grown, self._is_encoded[:, None], self.tile_tokens), 0)

    def _fits(self, prompt_tokens: int, tokens: int) -> bool:
        """Whether a row alone has enough tiles in every layer to process `tokens` tokens, its copies included."""
        wanted = self._bounds.of_row(prompt_tokens, tokens).tolist()
        return all(count <= pool.most for count, pool in zip(wanted, self._pools, strict=True))

    def _whole_tiles(self, tokens: int) -> int:
        """`tokens` rounded up to whole tiles, so that few different questions are asked."""
        return -(-tokens // self.tile_tokens) * self.tile_tokens
