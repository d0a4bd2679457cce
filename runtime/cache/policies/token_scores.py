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
    retention,
)
from enginewright.runtime.cache.policy import GATES, MARKS, CacheSession, Ints, StoredRow
from enginewright.runtime.cache.policy import SCORES as SCORING

if TYPE_CHECKING:
    from enginewright.runtime.cache.policies.evict import EvictConfig

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RowView:
    """The facts about a row that scores are made of, in the layers without a window; 0 where a layer has no such head.

    row: the row.
    importance, redundancy[layers, heads, n] float32: of the session; None where it was not asked, or has none.
    marks[layers, heads, channels, n] float32: the same.
    """

    row: StoredRow
    importance: Floats | None
    redundancy: Floats | None
    marks: Floats | None

    @property
    def positions(self) -> Ints:
        """The positions of the stored tokens, int64 [layers, heads, n]; after a head's last they mean nothing."""
        return self.row.all_positions()

    @classmethod
    def of_row(cls, row: StoredRow, session: CacheSession, needs: frozenset[str]) -> RowView:
        """Return the view of a row, for which the session is asked what `needs` names."""
        heads = row.stored.shape[1]
        scores = session.score(row) if SCORING in needs else []
        with_redundancy = [each.redundancy for each in scores if each.redundancy is not None]
        return cls(
            row=row,
            importance=_stacked([each.importance for each in scores], heads),
            redundancy=_stacked(with_redundancy, heads),
            marks=_stacked(session.marks(row), heads) if needs & {MARKS, GATES} else None,
        )


def _stacked(arrays: Sequence[Floats], heads: int) -> Floats | None:
    """Arrays [own heads, ...] of layers as one, [layers, heads, ...]; None of no arrays."""
    if not arrays:
        return None
    if all(len(each) == heads for each in arrays):
        return np.stack(arrays)
    found = np.zeros((len(arrays), heads, *arrays[0].shape[1:]), np.float32)
    for own, each in zip(found, arrays, strict=True):
        own[: len(each)] = each
    return found


def _no_more(budget: int, interval: int) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """A rule by which tokens are scored.

    needs: the abilities that the session must offer for it, out of SCORES, MARKS and GATES.
    score: returns the scores [layers, heads, n] float32 of the stored tokens; those of the newest tokens are not read.
    recent: returns how many newest tokens always stay, from budget and interval, where it is more than the window.
    queries: the number of queries that it is made of; 0: those of the window.
    scope, group: as TokenScores has them.
    marks: `kind` of MarkTokens; None: the graph marks nothing.
    differs_by_head: whether heads may keep different tokens.
    redundancy: whether it reads the redundancy.
    """

    needs: frozenset[str]
    score: Callable[[EvictConfig, RowView], Floats]
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

    def of_row(self, config: EvictConfig, view: RowView) -> Floats:
        """Return the scores [layers, heads, n] of the stored tokens, infinite for the first `sinks` tokens of the request."""
        scores = self.score(config, view).astype(np.float32, copy=False)
        return keep_sinks(scores, view.positions, config.sinks) if config.sinks else scores


def _importance(config: EvictConfig, view: RowView) -> Floats:
    """The importance of the tokens before the window, 0 elsewhere."""
    assert view.importance is not None
    before = np.arange(view.importance.shape[-1]) < (view.row.stored - config.window)[..., None]
    return np.where(before, view.importance, np.float32(0))


def _decode_form(config: EvictConfig, view: RowView) -> Floats:
    return largest_neighbour(_importance(config, view), config.kernel)


def _prompt_form(config: EvictConfig, view: RowView) -> Floats:
    return mean_of_neighbours(_importance(config, view), config.kernel)


def _rkv(config: EvictConfig, view: RowView) -> Floats:
    assert view.redundancy is not None
    mix = np.float32(config.mix)
    return mix * _decode_form(config, view) - (np.float32(1) - mix) * view.redundancy


def _tova(config: EvictConfig, view: RowView) -> Floats:
    """The mean over the layer's heads, all of which have the same tokens."""
    importance, has = _importance(config, view), view.row.stored[..., None] > 0
    mean = importance.sum(axis=1, keepdims=True) / np.maximum(has.sum(axis=1, keepdims=True), 1)
    return np.broadcast_to(mean, importance.shape)


def _heavy_hitters(config: EvictConfig, view: RowView) -> Floats:
    assert view.marks is not None
    return view.marks[:, :, 0]


def _lazy(config: EvictConfig, view: RowView) -> Floats:
    assert view.marks is not None
    last, interval = view.marks[:, :, 0].astype(np.int64), view.marks[:, :, 1].astype(np.int64)
    return lazy_score(last, interval, view.row.processed - 1).astype(np.float32)


def _retained(config: EvictConfig, view: RowView) -> Floats:
    """TRIM-KV's score, of which the marks are the gates' logits: their sigmoid is beta."""
    assert view.marks is not None
    log_beta = -np.logaddexp(np.float32(0), -view.marks[:, :, 0])
    return retention(log_beta, view.positions, view.row.processed + 1).astype(np.float32, copy=False)


def _by_position(config: EvictConfig, view: RowView) -> Floats:
    return view.positions.astype(np.float32)


def _random(config: EvictConfig, view: RowView) -> Floats:
    """Random numbers that follow from the place of the eviction, so that they come again after a preemption."""
    seed = view.row.prompt_tokens, view.row.processed
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
    "trim": TokenScore(needs=frozenset({GATES}), score=_retained, marks="given"),
    "streaming": TokenScore(needs=frozenset(), score=_by_position),
    "random": TokenScore(needs=frozenset(), score=_random),
}
"""The scores by name: R-KV; SnapKV for decoding and for prompts; TOVA; H2O; LazyEviction; TRIM-KV; StreamingLLM; chance."""
