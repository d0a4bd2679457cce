"""The scores by which the policy `evict` ranks the stored tokens of a layer, from what the session and the graph give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.cache.policies.scores import (
    keep_sinks,
    largest_neighbour,
    lazy_score,
    mean_of_neighbours,
    random_scores,
)
from enginewright.runtime.cache.policy import MARKS, CacheSession, Ints, LayerScores, Mask, StoredRow
from enginewright.runtime.cache.policy import SCORES as SCORING

if TYPE_CHECKING:
    from enginewright.runtime.cache.policies.evict import EvictConfig

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """The facts about one layer of a row that scores are made of.

    row: the row.
    number: of the layer in the model.
    stored[heads] int64: tokens stored.
    positions[heads, n] int64: of the stored tokens; 0 after a head's last.
    scores: of the session; None where it was not asked.
    marks[heads, channels, n] float32: the same.
    """

    row: StoredRow
    number: int
    stored: Ints
    positions: Ints
    scores: LayerScores | None
    marks: Floats | None

    @property
    def before(self) -> Mask:
        """Whether a column has a token of the head, bool [heads, n]."""
        return np.arange(self.positions.shape[1]) < self.stored[:, None]

    @classmethod
    def of_row(
        cls, row: StoredRow, session: CacheSession, needs: frozenset[str], layers: Sequence[int], has: Mask
    ) -> list[LayerView]:
        """Return the views of a row's layers.

        needs: what the session is asked for.
        has: bool [layers, heads], whether a layer has that head.
        """
        scores = session.score(row) if SCORING in needs else [None] * len(layers)
        marks = session.marks(row) if MARKS in needs else [None] * len(layers)
        views = []
        for layer, number in enumerate(layers):
            heads = int(has[layer].sum())
            positions = np.zeros((heads, int(row.stored.max())), np.int64)
            for head in range(heads):
                own = row.positions(layer, head)
                positions[head, : len(own)] = own
            views.append(
                cls(
                    row=row,
                    number=number,
                    stored=row.stored[layer, :heads],
                    positions=positions,
                    scores=scores[layer],
                    marks=marks[layer],
                )
            )
        return views


def _no_more(budget: int, interval: int) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """A rule by which tokens are scored.

    needs: the abilities that the session must offer for it, out of SCORES and MARKS.
    score: returns the scores [heads, n] float32 of a layer's stored tokens; those of the newest tokens are not read.
    recent: returns how many newest tokens always stay, from budget and interval, where it is more than the window.
    queries: the number of queries that it is made of; 0: those of the window.
    scope, group: as TokenScores has them.
    marks: `kind` of MarkTokens; None: the graph marks nothing.
    differs_by_head: whether heads may keep different tokens.
    redundancy: whether it reads the redundancy.
    """

    needs: frozenset[str]
    score: Callable[[EvictConfig, LayerView], Floats]
    recent: Callable[[int, int], int] = _no_more
    queries: int = 0
    scope: str = "before"
    group: str = "max_logit"
    marks: str | None = None
    differs_by_head: bool = True
    redundancy: bool = False

    @property
    def reads_queries(self) -> bool:
        """Whether it reads scores of the newest queries."""
        return SCORING in self.needs

    def of_layer(self, config: EvictConfig, view: LayerView) -> Floats:
        """Return the scores [heads, n] of a layer's stored tokens, infinite for the first `sinks` tokens of the request."""
        scores = self.score(config, view).astype(np.float32, copy=False)
        return keep_sinks(scores, view.positions, config.sinks) if config.sinks else scores


def _importance(config: EvictConfig, view: LayerView) -> Floats:
    """The importance of the tokens before the window, 0 elsewhere."""
    assert view.scores is not None
    before = np.arange(view.scores.importance.shape[1]) < (view.stored - config.window)[:, None]
    return np.where(before, view.scores.importance, np.float32(0))


def _decode_form(config: EvictConfig, view: LayerView) -> Floats:
    return largest_neighbour(_importance(config, view), config.kernel)


def _prompt_form(config: EvictConfig, view: LayerView) -> Floats:
    return mean_of_neighbours(_importance(config, view), config.kernel)


def _rkv(config: EvictConfig, view: LayerView) -> Floats:
    assert view.scores is not None and view.scores.redundancy is not None
    mix = np.float32(config.mix)
    return mix * _decode_form(config, view) - (np.float32(1) - mix) * view.scores.redundancy


def _tova(config: EvictConfig, view: LayerView) -> Floats:
    importance = _importance(config, view)
    return np.broadcast_to(importance.mean(axis=0), importance.shape)


def _heavy_hitters(config: EvictConfig, view: LayerView) -> Floats:
    assert view.marks is not None
    return view.marks[:, 0]


def _lazy(config: EvictConfig, view: LayerView) -> Floats:
    assert view.marks is not None
    last, interval = view.marks[:, 0].astype(np.int64), view.marks[:, 1].astype(np.int64)
    return lazy_score(last, interval, view.row.processed - 1).astype(np.float32)


def _by_position(config: EvictConfig, view: LayerView) -> Floats:
    return view.positions.astype(np.float32)


def _random(config: EvictConfig, view: LayerView) -> Floats:
    """Random numbers that follow from the layer and the place of the eviction, so that they come again after a preemption."""
    seed = view.number, view.row.prompt_tokens, view.row.processed
    return random_scores(view.positions.size, seed).reshape(view.positions.shape)


SCORES: dict[str, TokenScore] = {
    "rkv": TokenScore(needs=frozenset({SCORING}), score=_rkv, redundancy=True),
    "snapkv": TokenScore(needs=frozenset({SCORING}), score=_decode_form),
    "snapkv-prompt": TokenScore(needs=frozenset({SCORING}), score=_prompt_form, scope="causal", group="mean"),
    "tova": TokenScore(
        needs=frozenset({SCORING}), score=_tova, queries=1, scope="causal", group="mean", differs_by_head=False
    ),
    "h2o": TokenScore(
        needs=frozenset({MARKS}), score=_heavy_hitters, marks="mass", recent=lambda budget, _: budget // 2
    ),
    "lazy": TokenScore(needs=frozenset({MARKS}), score=_lazy, marks="recurrence", recent=lambda _, interval: interval),
    "streaming": TokenScore(needs=frozenset(), score=_by_position),
    "random": TokenScore(needs=frozenset(), score=_random),
}
"""The scores by name: R-KV; SnapKV for decoding and for prompts; TOVA; H2O; LazyEviction; StreamingLLM; chance."""
