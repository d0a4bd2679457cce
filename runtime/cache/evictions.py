"""An eviction as arrays over layers and heads: the tiles that it takes, the copies that it makes, the tables after it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.cache.policy import Ints, Mask

Table = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Eviction:
    """The tokens that a row keeps; `of_tokens` creates it.

    A tile before the first token that leaves stays in the table. From there on, what stays is copied to fresh tiles.

    stays[layers, heads, n] bool: whether each stored token stays.
    counts[layers, heads] int64: tokens that stay.
    begin[layers, heads] int64: tiles of the table that stay.
    fresh[layers, heads] int64: fresh tiles that come after them.
    changed[layers, heads] bool: whether a token leaves.
    """

    stays: Mask
    counts: Ints
    begin: Ints
    fresh: Ints
    changed: Mask

    @classmethod
    def of_tokens(cls, stays: Mask, stored: Ints, tiles: Ints, size: int) -> Eviction:
        """Return the eviction after which `stays` alone is stored.

        stored[layers, heads]: tokens stored before.
        tiles[layers, heads]: tiles of each head in the table.
        size: tokens of a tile.
        """
        counts = stays.sum(axis=-1)
        changed = counts < stored
        begin = np.where(changed, stays.argmin(axis=-1) // size, tiles)
        fresh = np.where(changed, np.maximum(-(-counts // size) - begin, 0), 0)
        return cls(stays=stays, counts=counts, begin=begin, fresh=fresh, changed=changed)

    def moves(self, table: Table, ids: Table, size: int) -> list[Table]:
        """Return each layer's copies, int32 [n, 4]: tile and place to read, tile and place to write.

        table[layers, heads, tiles]: the tiles of each head.
        ids[layers, heads, most]: the fresh ones.
        """
        first = self.begin * size  # all tokens before it stay, and stay where they are
        counts = np.where(self.changed, self.counts - first, 0)
        each, width = counts.ravel(), self.stays.shape[2]
        heads = np.repeat(np.arange(len(each)), each)
        moving = self.stays & self.changed[..., None] & (np.arange(width) >= first[..., None])
        sources = np.flatnonzero(moving) - heads * width
        targets = np.arange(len(heads)) - np.repeat(np.cumsum(each) - each, each)
        moves = np.empty((len(heads), 4), np.int32)
        for column, at, tiles in ((0, sources, table), (2, targets, ids)):
            number = at // size
            moves[:, column] = tiles.ravel()[heads * tiles.shape[2] + number]
            moves[:, column + 1] = at - number * size
        ends = np.cumsum([0, *counts.sum(axis=1)])
        return [moves[begin:end] for begin, end in pairwise(ends.tolist())]

    def tables(self, table: Table, ids: Table, tiles: Ints) -> tuple[Table, list[Table]]:
        """Return the table after the eviction, and each layer's tiles that have left it.

        table, ids: as for `moves`.
        tiles[layers, heads]: tiles of each head before.
        """
        places, begin = np.arange(table.shape[2]), self.begin[..., None]
        leaves = self.changed[..., None] & (places >= begin) & (places < tiles[..., None])
        after = table.copy()
        comes = (places >= begin) & (places < begin + self.fresh[..., None])
        after[comes] = ids[np.arange(ids.shape[2]) < self.fresh[..., None]]
        return after, [own[gone] for own, gone in zip(table, leaves, strict=True)]

    def kept(self, positions: Ints) -> Ints:
        """Return the positions of what stays, int64 [layers, heads, most], 0 after a head's last.

        positions[layers, heads, n]: those of the stored tokens.
        """
        found = np.zeros((*self.counts.shape, int(self.counts.max(initial=0))), np.int64)
        places = np.flatnonzero(np.arange(found.shape[2]) < self.counts[..., None])
        found.ravel()[places] = positions.ravel()[np.flatnonzero(self.stays)]
        return found


def spread(ids: Table, counts: Ints) -> Table:
    """Return `ids` [n] as [layers, heads, most]: the first counts[0, 0] for the first head, and so on; 0 after a head's last."""
    found = np.zeros((*counts.shape, int(counts.max(initial=0))), np.int32)
    found[np.arange(found.shape[-1]) < counts[..., None]] = ids
    return found
