"""The form of the policy `evict` in which whole tiles leave, so that nothing is copied and nothing is encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from enginewright.runtime.artifact.manifest import Cache
from enginewright.runtime.cache.policies.allocations import ALLOCATIONS
from enginewright.runtime.cache.policies.select import keep_mask
from enginewright.runtime.cache.policies.token_scores import SCORES, RowView, TokenScore
from enginewright.runtime.cache.policy import TILES, CacheSession, Ints, Mask, StoredRow, governed_layers

if TYPE_CHECKING:
    from enginewright.runtime.cache.policies.evict import EvictConfig


def check_sizes(config: EvictConfig, size: int) -> None:
    """Raise ValueError for a budget of fewer tiles than the first one and those that the newest tokens may lie in."""
    least = (2 + (config.recent + size - 2) // size) * size
    if config.budget < least:
        raise ValueError(
            f"budget: got {config.budget} with granularity tile, expected {least} or more: the first tile, and those of the "
            f"{config.recent} newest tokens"
        )


class EvictTiles:
    """Evicts the tiles with the smallest mean of their tokens' scores; created by POLICY of `evict`.

    Budgets count tiles, the unfinished one included. The first tile stays, and those of the newest tokens.
    """

    def __init__(self, config: EvictConfig, cache: Cache) -> None:
        self._size = cache.tile_tokens
        self._config = config
        self._score: TokenScore = SCORES[config.score]
        check_sizes(config, self._size)
        self._tiles = config.budget // self._size
        layers = [cache.layers[index].kv_heads for index in governed_layers(cache)]
        whole = replace(config, budget=self._tiles * self._size)
        self._allocation = ALLOCATIONS[config.allocation](whole, np.array(layers, np.int64))
        self.needs = self._score.needs | {TILES}
        self.queries = config.window if self._score.reads_queries else 0

    def most_stored(self, prompt_tokens: int, tokens: int) -> Ints:
        """Return the prompt, or the budget and what comes until the next eviction."""
        grown = self._allocation.most_of_heads + self._config.interval
        return np.minimum(tokens, np.maximum(self._config.held_whole(prompt_tokens), grown))

    def next_due(self, row: StoredRow) -> int | None:
        """Return the first place at which something may be over its budget, of those that the prompt's length gives."""
        return self._config.due_after(row, self._allocation.room(row.stored))

    def keep(self, rows: Sequence[StoredRow], session: CacheSession) -> list[Mask]:
        """Keep each head's first tile and those of its newest tokens, and the others with the largest mean scores."""
        return [self._keep(row, session) for row in rows]

    def _keep(self, row: StoredRow, session: CacheSession) -> Mask:
        full = row.whole_tiles
        most, budgets = int(full.max()), self._tiles - (row.stored % self._size > 0)
        if (full <= budgets).all():
            return np.ones(1, np.bool_)
        view = RowView.of_row(row, session, self._score.needs)
        tokens = self._score.of_row(self._config, view)[..., : most * self._size]
        scores = tokens.reshape(*full.shape, most, self._size).mean(axis=-1)
        places = np.arange(most)
        stays = (places == 0) | ((places + 1) * self._size > (row.stored - self._config.recent)[..., None])
        scores = np.where(stays, np.float32(np.inf), scores)
        flat = keep_mask(scores.reshape(-1, most), full.ravel(), budgets.ravel(), 0)
        return flat.reshape(*full.shape, most)
