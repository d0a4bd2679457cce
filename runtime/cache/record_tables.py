"""The tile tables of an engine whose cache policy chooses tokens before they are encoded, each layer and KV head for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from enginewright.runtime.artifact.manifest import Cache
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.evictions import Eviction
from enginewright.runtime.cache.policy import CachePolicy, CacheSession, EncodedRow, Ints, Mask, RecordPolicy, StoredRow
from enginewright.runtime.cache.policy_tables import PolicyTables
from enginewright.runtime.cache.tile_pool import Table
from enginewright.runtime.errors import ExtensionError


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """What stays of a row, int64 [layers, heads] each; `RecordTables._choose` creates it.

    tiles: encoded tiles that stay. exact: exact tokens that stay after the first tile. fills: whether so many of them have been
    chosen that the first tile of them is to be encoded, 0 or 1. moves: whether an exact token changes its place.
    """

    tiles: Ints
    exact: Ints
    fills: Ints
    moves: Mask


class RecordTables(PolicyTables):
    """PolicyTables whose steps encode nothing: tokens stay exact until their row is due; created by `open_tables`.

    Then those that stay are packed, and a tile that is full of them is encoded. The exact tiles after the first one are a ring,
    in which a tile's place follows from its number in the head. Rows share no tiles, because what is encoded follows from
    what the whole request has chosen.
    """

    def __init__(self, cache: Cache, capacity: Capacity, policy: CachePolicy) -> None:
        super().__init__(cache, capacity, policy)
        self._shares = False
        layers = [cache.layers[index] for index in self._governed]
        self._exact_tiles = layers[0].exact_tiles
        self._spare_slot = capacity.rows  # of the buffers of exact tiles: the place that copies go through
        for pool in self._pools:
            pool.steps_encode = False
            pool.end[:] = pool.tokens_without_tiles
        self._held_capacity = self._capacity_of_rows()

    def _encode_to(self, lengths: Ints) -> None:
        """Tell the next step to encode tiles, in layers that no policy governs."""
        super()._encode_to(lengths)
        for index in self._governed:
            self.encoded_lens[1, index] = self.encoded_lens[0, index]

    def _stored_row(self, row: int) -> StoredRow:
        """Return the row as the policy sees it, with what is encoded of it."""
        seen = super()._stored_row(row)
        return EncodedRow(**vars(seen), encoded=self._encoded_of(self._count[:, row]))

    def _needed_tiles(self, seen: StoredRow, until: int) -> Ints:
        """Return the tiles that a row has: steps take none."""
        found: Ints = self._count[:, seen.row]
        return found

    def _encoded_of(self, tiles: Ints) -> Ints:
        """Return the tokens of heads with so many encoded tiles, with those of the first one; 0 with none."""
        found: Ints = np.where(tiles > 0, (1 + tiles) * self.tile_tokens, 0)
        return found

    def _set_encoded(self, row: int, lens: Ints) -> None:
        """Note how many tokens each head of a row has in encoded tiles."""
        super()._set_encoded(row, self._encoded_of(self._count[:, row]))

    def _evict(self, row: StoredRow, mask: Mask, session: CacheSession) -> bool:
        """Let a row's heads go of the tokens that `mask` does not have, and encode what then fills a tile.

        Return False, and change nothing, where tiles lack.
        """
        stays = self._widen(mask, row.stored, "stored tokens", int(row.stored.max()))
        stays &= np.arange(stays.shape[2]) < row.stored[..., None]
        choice = self._choose(row, stays)
        eviction = Eviction.of_tokens(stays, row.stored, self._count[:, row.row], self.tile_tokens)
        if not eviction.changed.any() and not choice.fills.any():
            self._settle(row, changed=False)
            return True
        if not self._free_for_copies(choice.fills.sum(axis=1).tolist()):
            return False
        taken = [pool.take(int(each.sum())) for pool, each in zip(self._pools, choice.fills, strict=True)]
        try:
            table, left = self._tables_after(row, stays, choice, taken)
            for moves in self._moves(row, stays, choice):
                session.compact(moves)
            self._encode(row, choice, table, session)
        except BaseException:  # whatever it is, the tiles are free again
            for pool, each in zip(self._pools, taken, strict=True):
                pool.let_go(each)
            raise
        self.tile_table[:, row.row] = table
        self._count[:, row.row] = choice.tiles + choice.fills
        for pool, ids in zip(self._pools, left, strict=True):
            pool.let_go(ids)
        self._remember(row, eviction)
        self._settle(row, changed=True)
        return True

    def _choose(self, row: StoredRow, stays: Mask) -> _Choice:
        """Return the choice that a mask over stored tokens stands for, after a check that it can be followed."""
        size, count = self.tile_tokens, self._count[:, row.row]
        begins = np.minimum((1 + count) * size, row.stored)  # of the exact tokens after the first tile
        places = np.arange(stays.shape[2])
        tiles = np.zeros_like(count)
        for tile in range(1, 1 + int(count.max())):
            own = stays[..., tile * size : (tile + 1) * size].sum(axis=2)
            has = tile <= count
            if (has & (own % size > 0)).any():
                raise ExtensionError(
                    f"{self._name}: keep: got a part of an encoded tile, expected all of it or nothing"
                )
            tiles += has & (own > 0)
        first = np.minimum(row.stored, size)
        if ((stays & (places < size)).sum(axis=2) < first).any():
            raise ExtensionError(f"{self._name}: keep: got a part of the first tile, expected all of it")
        exact = (stays & (places >= begins[..., None])).sum(axis=2)
        chosen = exact - cast(RecordPolicy, self._policy).newest
        fills = ((chosen >= size) & self._has).astype(np.int64)
        if (exact - fills * size > (self._exact_tiles - 2) * size).any():
            raise ExtensionError(
                f"{self._name}: keep: got {int((exact - fills * size).max())} tokens that are not encoded, expected "
                f"{(self._exact_tiles - 2) * size} at most, so that there is room for the next {size}"
            )
        moved = (tiles != count) | (exact < row.stored - begins)
        return _Choice(tiles=tiles, exact=exact, fills=fills, moves=moved & (exact > 0))

    def _tables_after(
        self, row: StoredRow, stays: Mask, choice: _Choice, taken: list[Table]
    ) -> tuple[Table, list[Table]]:
        """Return the row's table [all layers, heads, tiles] after the eviction, and each layer's tiles that leave."""
        table, left = self.tile_table[:, row.row].copy(), list[Table]()
        for layer, pool in enumerate(self._pools):
            own, gone = table[self._governed[layer], : pool.heads, 1:], list[Table]()
            fresh = iter(taken[layer].tolist())
            for head in range(pool.heads):
                count = int(self._count[layer, row.row, head])
                ids = own[head, :count].copy()
                kept = stays[layer, head, self.tile_tokens :][: count * self.tile_tokens : self.tile_tokens]
                own[head, : int(kept.sum())] = ids[kept]
                gone.append(ids[~kept])
                if choice.fills[layer, head]:
                    own[head, int(kept.sum())] = next(fresh)
            left.append(np.concatenate(gone))
        return table, left

    def _moves(self, row: StoredRow, stays: Mask, choice: _Choice) -> list[dict[int, Table]]:
        """Return the copies of exact tokens by layer, first to the spare places, then to the row's own."""
        to_spare, back = dict[int, Table](), dict[int, Table]()
        for layer, pool in enumerate(self._pools):
            found = [np.zeros((0, 6), np.int64)]
            for head in np.flatnonzero(choice.moves[layer, : pool.heads]).tolist():
                begin = (1 + int(self._count[layer, row.row, head])) * self.tile_tokens
                old = begin + np.flatnonzero(stays[layer, head, begin : int(row.stored[layer, head])])
                new = (1 + int(choice.tiles[layer, head])) * self.tile_tokens + np.arange(len(old))
                source, target = (self._exact_tile(row.row, pool.heads, head, each) for each in (old, new))
                spare = self._exact_tile(self._spare_slot, pool.heads, head, new)
                size = self.tile_tokens
                moves = np.stack([source, old % size, spare, new % size, target, new % size], axis=1)
                found.append(moves[(source != target) | (old % size != new % size)])
            every = np.concatenate(found).astype(np.int32)
            to_spare[self._governed[layer]] = np.ascontiguousarray(every[:, :4])
            back[self._governed[layer]] = np.ascontiguousarray(every[:, 2:])
        return [to_spare, back] if any(map(len, back.values())) else []

    def _exact_tile(self, slot: int, heads: int, head: int, places: Ints) -> Ints:
        """Return the numbers, in a layer's buffer of exact tiles, of those that hold a head's places after the first tile."""
        ring = self._exact_tiles - 1
        found: Ints = (slot * heads + head) * self._exact_tiles + 1 + (places // self.tile_tokens - 1) % ring
        return found

    def _encode(self, row: StoredRow, choice: _Choice, table: Table, session: CacheSession) -> None:
        """Encode the first exact tile of each head in which it is full of tokens that stay."""
        if not choice.fills.any():
            return
        size, layers = self.tile_tokens, list(self._governed)
        lens = self.kv_lens[:, row.row].copy()
        encoded = np.zeros((2, *lens.shape), np.int32)
        lens[layers] = np.where(row.stored > size, (1 + choice.tiles) * size + choice.exact, row.stored)
        before = np.where(row.stored >= size, (1 + choice.tiles) * size, 0)
        encoded[0, layers] = before
        encoded[1, layers] = before + choice.fills * size
        session.encode(row.row, table[:, None], lens[:, None], encoded[:, :, None])
