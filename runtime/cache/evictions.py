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
    rank[layers, heads, n] int64: the place of each token that stays, among those that stay.
    counts[layers, heads] int64: tokens that stay.
    begin[layers, heads] int64: tiles of the table that stay.
    fresh[layers, heads] int64: fresh tiles that come after them.
    changed[layers, heads] bool: whether a token leaves.
    """

    stays: Mask
    rank: Ints
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
        rank = np.cumsum(stays, axis=-1) - 1
        counts = rank[..., -1] + 1
        changed = counts < stored
        begin = np.where(changed, stays.argmin(axis=-1) // size, tiles)
        fresh = np.where(changed, np.maximum(-(-counts // size) - begin, 0), 0)
        return cls(stays=stays, rank=rank, counts=counts, begin=begin, fresh=fresh, changed=changed)

    def moves(self, table: Table, ids: Table, size: int) -> list[Table]:
        """Return each layer's copies, int32 [n, 4]: tile and place to read, tile and place to write.

        table[layers, heads, tiles]: the tiles of each head.
        ids[layers, heads, most]: the fresh ones.
        """
        moving = self.stays & self.changed[..., None] & (self.rank >= (self.begin * size)[..., None])
        layers, heads, places = np.nonzero(moving)
        targets = self.rank[layers, heads, places] - self.begin[layers, heads] * size
        source, target = table[layers, heads, places // size], ids[layers, heads, targets // size]
        moves = np.stack([source, places % size, target, targets % size], axis=1).astype(np.int32)
        ends = np.searchsorted(layers, np.arange(len(table) + 1))
        return [moves[begin:end] for begin, end in pairwise(ends.tolist())]

    def kept(self, positions: Ints) -> Ints:
        """Return the positions of what stays, int64 [layers, heads, most], 0 after a head's last.

        positions[layers, heads, n]: those of the stored tokens.
        """
        found = np.zeros((*self.counts.shape, int(self.counts.max(initial=0))), np.int64)
        layers, heads, places = np.nonzero(self.stays)
        found[layers, heads, self.rank[layers, heads, places]] = positions[layers, heads, places]
        return found


def spread(ids: Table, counts: Ints) -> Table:
    """Return `ids` [n] as [heads, most]: the first counts[0] for head 0, and so on; 0 after a head's last."""
    found = np.zeros((len(counts), int(counts.max(initial=0))), np.int32)
    found[np.arange(found.shape[1]) < counts[:, None]] = ids
    return found
