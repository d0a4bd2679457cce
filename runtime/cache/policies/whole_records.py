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

    A budget counts the first tile, which always stays, and the newest tokens. Over it, first new tokens leave: those that came
    since the last eviction, until half of them are left. Then encoded tiles leave, the smallest mean of scores
    first. So what has been chosen is not compared with single new tokens, of which there are always some with smaller scores.
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
        """Keep each head's first tile and newest tokens, and let others leave until it is within its budget."""
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
        size, recent = self._size, self._config.recent
        over = len(scores) + recent - self._config.budget
        stays = np.ones(len(scores), np.bool_)
        fresh = max(len(scores) - size, begin)  # the tokens after it have not been chosen yet
        leaves = min(over, len(scores) - fresh - size // 2)
        over -= _drop_least(scores, stays, fresh, leaves)
        tiles = scores[size:begin].reshape(-1, size).mean(axis=1)
        for tile in _from_least(tiles)[: max(-(-over // size), 0)]:
            stays[(1 + tile) * size : (2 + tile) * size] = False
            over -= size
        over -= _drop_least(scores, stays, begin, over)
        waiting = int(stays[begin:].sum())
        if size - recent < waiting < size:  # more would not leave room for the next tile
            _drop_least(scores, stays, begin, waiting - (size - recent))
        return stays


def _is_between(count: Ints | int, low: int, high: int) -> Mask:
    return np.asarray((count > low) & (count < high))


def _from_least(scores: Floats) -> list[int]:
    """Return the order in which things leave: the smallest score first, of equal ones the earlier."""
    found: list[int] = np.argsort(scores, kind="stable").tolist()
    return found


def _drop_least(scores: Floats, stays: Mask, begin: int, count: int) -> int:
    """Let the `count` smallest of the tokens from `begin` on that stay leave, as far as there are so many; return their number."""
    there = begin + np.flatnonzero(stays[begin:])
    gone = there[_from_least(scores[there])[: max(count, 0)]]
    stays[gone] = False
    return len(gone)
