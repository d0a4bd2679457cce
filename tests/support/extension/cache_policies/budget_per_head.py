"""A cache policy with a budget for each layer and KV head: their newest tiles stay, once the prompt has been read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from enginewright.runtime.artifact.manifest import Cache
from enginewright.runtime.cache.policy import TILES, CacheSession, Ints, Mask, PolicyKind, StoredRow, governed_layers


@dataclass(frozen=True, kw_only=True)
class BudgetPerHeadConfig:
    """Full tiles that stay.

    budgets: for each layer without a window, and each of its heads.
    """

    budgets: tuple[tuple[int, ...], ...]


class BudgetPerHead:
    """Evicts when the prompt is complete, and after every tile_tokens further tokens."""

    needs = frozenset({TILES})

    def __init__(self, config: BudgetPerHeadConfig, cache: Cache) -> None:
        heads = max(layer.kv_heads for layer in cache.layers)
        self._interval = cache.tile_tokens
        self._budgets = np.zeros((len(governed_layers(cache)), heads), np.int64)
        for layer, own in enumerate(config.budgets):
            self._budgets[layer, : len(own)] = own

    def most_stored(self, prompt_tokens: int, tokens: int) -> Ints:
        """Return the prompt, or the budget, the unfinished tile, and what comes until the next time."""
        grown = (self._budgets + 1) * self._interval - 1 + self._interval
        return np.minimum(tokens, np.maximum(prompt_tokens, grown))

    def next_due(self, row: StoredRow) -> int | None:
        """Return the prompt's end, then every interval after it."""
        if row.processed < row.prompt_tokens:
            return row.prompt_tokens
        return row.processed + self._interval - (row.processed - row.prompt_tokens) % self._interval

    def keep(self, rows: Sequence[StoredRow], session: CacheSession) -> list[Mask]:
        """Keep each head's newest tiles."""
        return [np.arange(row.whole_tiles.max()) >= (row.whole_tiles - self._budgets)[..., None] for row in rows]


POLICY = PolicyKind(name="budget_per_head", config=BudgetPerHeadConfig, open=BudgetPerHead)
