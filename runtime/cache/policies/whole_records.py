"""The form of the policy `evict` for a cache that encodes tiles: tokens are chosen before they are encoded.

A token is a candidate by itself while its tile is exact. Those that stay are packed, and once they fill a tile they are
encoded, once and for all. After that they leave together or not at all. So nothing is encoded twice, and what is encoded has
been chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import Cache
from enginewright.runtime.cache.policies.attention_weights import check_scores
from enginewright.runtime.cache.policies.token_scores import SCORES, RowView, TokenScore
from enginewright.runtime.cache.policy import RECORDS, CacheSession, EncodedRow, Ints, Mask, StoredRow, governed_layers

if TYPE_CHECKING:
    from enginewright.runtime.cache.policies.evict import EvictConfig

Floats = NDArray[np.float32]
EXACT_TILES = 3
"""Exact tiles of a head: the first one, and two for tokens that wait for their tile to fill up and for new ones."""


def check_sizes(config: EvictConfig, size: int) -> None:
    """Raise ValueError for options that do not go with tiles of `size` tokens."""
    if config.interval != size:
        raise ValueError(
            f"interval: got {config.interval} with granularity record, expected {size}, the tokens of a tile"
        )
    if config.recent >= size:
        raise ValueError(
            f"window: got {config.recent} newest tokens that always stay with granularity record, expected fewer than {size}, the "
            "tokens of a tile"
        )
    if config.budget < 2 * size:
        raise ValueError(
            f"budget: got {config.budget} with granularity record, expected {2 * size} or more: the first tile, and as many tokens"
        )


class EvictRecords:
    """Evicts single tokens of exact tiles, and encoded tiles as a whole, after every tile's worth of tokens; created by POLICY.

    A budget counts the first tile, which always stays, and the newest tokens. It is filled in the order of scores, where an
    encoded tile has the mean of its tokens' and takes the room of all of them.
    """

    def __init__(self, config: EvictConfig, cache: Cache) -> None:
        self._size = cache.tile_tokens
        check_sizes(config, self._size)
        self._config = config
        self._score: TokenScore = SCORES[config.score]
        heads = np.array([cache.layers[index].kv_heads for index in governed_layers(cache)], np.int64)
        self._has = np.arange(int(heads.max())) < heads[:, None]
        self.needs = self._score.needs | {RECORDS}
        self.newest = config.recent
        self.queries = config.window if self._score.reads_queries else 0

    def most_stored(self, prompt_tokens: int, tokens: int) -> Ints:
        """Return the most tokens in encoded tiles, and a tile that is not full; what waits to be encoded lies elsewhere."""
        most = (self._config.budget - self._config.recent) // self._size * self._size + self._size - 1
        return np.where(self._has, min(tokens, most), 0)

    def next_due(self, row: StoredRow) -> int | None:
        """Return the end of the tile of positions that comes next."""
        return (row.processed // self._size + 1) * self._size

    def keep(self, rows: Sequence[StoredRow], session: CacheSession) -> list[Mask]:
        """Keep each head's first tile and newest tokens, and what else of the largest scores the budget has room for."""
        return [self._keep(row, session) for row in rows]

    def _keep(self, row: StoredRow, session: CacheSession) -> Mask:
        assert isinstance(row, EncodedRow)
        most, recent = int(row.stored.max()), self._config.recent
        stays = np.ones((*row.stored.shape, most), np.bool_)
        begins = np.maximum(row.encoded, self._size)
        waiting = row.stored - begins - recent
        over = row.stored > self._config.budget
        if not (over | _is_between(waiting, self._size - recent, self._size)).any():
            return stays
        view = RowView.of_row(row, session, self._score.needs)
        scores = self._score.of_row(self._config, view)
        before = np.arange(most) < (row.stored - recent)[..., None]
        check_scores(np.where(before, scores, 0), "evict")
        for layer, head in zip(*np.nonzero(row.stored > self._size), strict=True):
            begin, end = int(begins[layer, head]), int(row.stored[layer, head]) - recent
            own = scores[layer, head, :end]
            stays[layer, head, :end] = self._choose(own, begin)
        return stays

    def _choose(self, scores: Floats, begin: int) -> Mask:
        """Return which tokens before the newest ones stay; those before `begin` are in tiles that leave as a whole."""
        size = self._size
        tiles = scores[size:begin].reshape(-1, size).mean(axis=1)
        each = np.concatenate([tiles, scores[begin:]])
        costs = np.ones(len(each), np.int64)
        costs[: len(tiles)] = size
        chosen = fill(each, costs, self._config.budget - size - self._config.recent)
        singles = np.flatnonzero(chosen[len(tiles) :])
        if _is_between(len(singles), size - self._config.recent, size):  # more would not leave room for the next tile
            own = scores[begin:][singles]
            order = np.lexsort((-singles, -own))
            chosen[len(tiles) + singles[order[size - self._config.recent :]]] = False
        return np.concatenate([np.ones(size, np.bool_), np.repeat(chosen[: len(tiles)], size), chosen[len(tiles) :]])


def _is_between(count: Ints | int, low: int, high: int) -> Mask:
    return np.asarray((count > low) & (count < high))


def fill(scores: Floats, costs: Ints, room: int) -> Mask:
    """Return what stays, bool [n], if things are taken in the order of their scores as long as they fit.

    scores: [n]; of equal ones the later thing comes first. costs: [n], the tokens of each.
    """
    if int(costs.sum()) <= room:
        return np.ones(len(scores), np.bool_)
    chosen = np.zeros(len(scores), np.bool_)
    for index in np.lexsort((-np.arange(len(scores)), -scores)).tolist():
        cost = int(costs[index])
        if cost <= room:
            chosen[index] = True
            room -= cost
    return chosen
