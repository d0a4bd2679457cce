"""The cache policy `evict`: every so many tokens, the tokens with the smallest scores leave, until each head is at its budget.

A score, an allocation of budgets and a rule of what stays make a policy. Scores are in `token_scores.py`, allocations in
`allocations.py`, the rule in `select.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from enginewright.runtime.artifact.manifest import Cache
from enginewright.runtime.artifact.value_ranges import MOST_CONTEXT, check_ranges
from enginewright.runtime.cache.policies.allocations import ALLOCATIONS, Allocation
from enginewright.runtime.cache.policies.select import keep_mask
from enginewright.runtime.cache.policies.token_scores import SCORES, RowView, TokenScore
from enginewright.runtime.cache.policies.whole_records import EvictRecords
from enginewright.runtime.cache.policies.whole_tiles import EvictTiles
from enginewright.runtime.cache.policy import (
    COMPACT,
    CachePolicy,
    CacheSession,
    Ints,
    Mask,
    PolicyKind,
    StoredRow,
    governed_layers,
)


@dataclass(frozen=True, kw_only=True)
class EvictConfig:
    """The options of the policy.

    score: the rule by which tokens are scored, one of SCORES.
    budget: tokens that each KV head keeps, on average over heads and layers.
    interval: tokens between two evictions.
    window: newest tokens that always stay, and whose queries make the scores.
    sinks: first tokens of a request that always stay.
    kernel: neighbours over which a score is pooled, an odd number; 1: it is not.
    mix: weight of the importance in R-KV's scores; the rest is that of the redundancy.
    alpha: least probability that counts as a hit in the score `lazy`.
    allocation: how budgets are shared, one of ALLOCATIONS.
    demand: for the allocation `reasonalloc`, how many tokens each layer without a window needs; empty: the same number.
    heads: whether that allocation shares a layer's budget among its heads by their scores.
    strict: whether its bounds hold exactly.
    score_norm: what it does to scores before it compares heads: "none"; "times_len": multiplies them by the head's length.
    whole: for the allocation `duo`, the heads of each layer without a window that keep every token; `budget` is that of each
        other head.
    prefill: "whole": a prompt stays until it is complete; "chunk": its tokens are evicted like those that are generated.
    granularity: what leaves: "token"; "tile": whole tiles, by the mean of their tokens' scores, which copies nothing; "record":
        tokens until their tile is encoded, then encoded tiles as a whole.
    """

    score: str = "rkv"
    budget: int = 512
    interval: int = 128
    window: int = 8
    sinks: int = 0
    kernel: int = 7
    mix: float = 0.1
    alpha: float = 1e-4
    allocation: str = "uniform"
    demand: tuple[float, ...] = ()
    heads: bool = True
    strict: bool = False
    score_norm: Literal["none", "times_len"] = "none"
    whole: tuple[tuple[int, ...], ...] = ()
    prefill: Literal["whole", "chunk"] = "whole"
    granularity: Literal["token", "tile", "record"] = "token"

    def __post_init__(self) -> None:
        for name, known in (("score", SCORES), ("allocation", ALLOCATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}")
        counts = dict.fromkeys(("budget", "interval", "window", "kernel"), (1, MOST_CONTEXT))
        check_ranges(self, **counts, sinks=(0, MOST_CONTEXT))
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: got {self.kernel}, expected an odd number from 1 up")
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix: got {self.mix}, expected 0 to 1")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha: got {self.alpha}, expected above 0 and at most 1")
        score = SCORES[self.score]
        if score.queries and score.queries != self.window:
            raise ValueError(f"window: got {self.window}, expected {score.queries} with score {self.score}")
        least = self.recent + self.sinks + 1
        if self.budget < least:
            raise ValueError(
                f"budget: got {self.budget}, expected {least} or more: the {self.recent} newest tokens, {self.sinks} first ones and "
                "one more"
            )
        if self.allocation != "uniform" and not score.differs_by_head:
            raise ValueError(
                f"allocation: got {self.allocation} with score {self.score}, which needs the same budget in all heads; expected "
                "uniform"
            )
        if self.allocation != "uniform" and self.granularity != "token":
            raise ValueError(f"allocation: got {self.allocation} with granularity {self.granularity}, expected uniform")
        if self.demand and self.allocation != "reasonalloc":
            raise ValueError(f"demand: got one with allocation {self.allocation}, expected reasonalloc")
        if self.whole and self.allocation != "duo":
            raise ValueError(f"whole: got heads with allocation {self.allocation}, expected duo")

    @property
    def recent(self) -> int:
        """The newest tokens that always stay: the window, or more where the score asks for it."""
        return max(self.window, SCORES[self.score].recent(self.budget, self.interval))

    def held_whole(self, prompt_tokens: int) -> int:
        """Return how many tokens of a prompt stay until it is complete."""
        return prompt_tokens if self.prefill == "whole" else 0

    def due_after(self, row: StoredRow, room: int) -> int:
        """Return where a row that can take `room` more tokens is due, of the places that its prompt's length gives."""
        first = row.processed + max(room, 0) + 1
        if first <= row.prompt_tokens:
            by_chunks = -(-first // self.interval) * self.interval if self.prefill == "chunk" else row.prompt_tokens
            return min(by_chunks, row.prompt_tokens)
        return row.prompt_tokens + -(-(first - row.prompt_tokens) // self.interval) * self.interval


class Evict:
    """Evicts single tokens when a prompt is complete, and after every `interval` further tokens; created by POLICY."""

    def __init__(self, config: EvictConfig, cache: Cache) -> None:
        self._config = config
        self._score: TokenScore = SCORES[config.score]
        self._layers = governed_layers(cache)
        heads: Ints = np.array([cache.layers[index].kv_heads for index in self._layers], np.int64)
        self._has = np.arange(max(layer.kv_heads for layer in cache.layers)) < heads[:, None]
        self._allocation: Allocation = ALLOCATIONS[config.allocation](config, heads)
        self.needs = self._score.needs | {COMPACT}
        self.queries = config.window if self._score.reads_queries else 0

    def most_stored(self, prompt_tokens: int, tokens: int) -> Ints:
        """Return the prompt, or the most of a budget and what comes until the next eviction."""
        grown = self._allocation.most_of_heads + self._config.interval
        return np.minimum(tokens, np.maximum(self._config.held_whole(prompt_tokens), grown))

    def most_in_layer(self, prompt_tokens: int, tokens: int) -> Ints:
        """Return the same over all heads of a layer, of which those that evict have budgets of one sum."""
        whole = self._allocation.whole_heads
        heads = self._has.sum(axis=1) - whole
        grown = self._allocation.of_layers + heads * self._config.interval
        most: Ints = np.minimum(heads * tokens, np.maximum(heads * self._config.held_whole(prompt_tokens), grown))
        return whole * tokens + most

    def most_kept(self) -> Ints:
        """Return the budgets of the layers' heads that evict."""
        return self._allocation.of_layers

    def next_due(self, row: StoredRow) -> int | None:
        """Return the first place at which something may be over its budget, of those that the prompt's length gives."""
        return self._config.due_after(row, self._allocation.room(row.stored))

    def keep(self, rows: Sequence[StoredRow], session: CacheSession) -> list[Mask]:
        """Keep each head's newest tokens, and as many of the others with the largest scores as its budget has room for."""
        return [self._keep(row, session) for row in rows]

    def _keep(self, row: StoredRow, session: CacheSession) -> Mask:
        most, recent = int(row.stored.max()), self._config.recent
        if most <= recent:
            return np.ones(1, np.bool_)
        view = RowView.of_row(row, session, self._score.needs)
        scores = self._score.of_row(self._config, view)[..., : most - recent]
        budgets = self._allocation.of_heads(row.stored, scores, recent)
        flat = keep_mask(scores.reshape(-1, most - recent), row.stored.ravel(), budgets.ravel(), recent)
        return flat.reshape(*self._has.shape, most)


def open_evict(config: EvictConfig, cache: Cache) -> CachePolicy:
    """Return the policy of these options, by what leaves."""
    forms: dict[str, Callable[[EvictConfig, Cache], CachePolicy]]
    forms = {"token": Evict, "tile": EvictTiles, "record": EvictRecords}
    return forms[config.granularity](config, cache)


POLICY = PolicyKind(name="evict", config=EvictConfig, open=open_evict)
