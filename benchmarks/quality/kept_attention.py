"""The share of the full cache's attention that falls on tokens which an engine with a cache policy still holds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.cache_codecs import Floats
from benchmarks.quality.evicted_caches import Watch
from enginewright.runtime.cache.policy import StoredRow
from enginewright.runtime.cache.policy_tables import PolicyTables
from enginewright.runtime.llm import LLM

Ints = NDArray[np.int64]


class WatchKept(Watch):
    """Watches an engine that runs one request at a time, and notes what each eviction leaves.

    rows: the row after each of its evictions, in order; the measuring code empties it between requests.
    """

    def __init__(self, llm: LLM) -> None:
        super().__init__(llm)
        self.rows: list[StoredRow] = []

    def _timed(self, session: Any) -> None:
        super()._timed(session)
        if isinstance(self._tables, PolicyTables) and self._tables._has_evicted[0]:
            row = self._tables._stored_row(0)
            if not self.rows or row.kept is not self.rows[-1].kept:
                self.rows.append(row)


def sample_queries(begin: int, end: int, block: int, count: int, seed: int) -> Ints:
    """Return positions from `begin` to `end` - 1, ascending: `count` drawn from each block of `block` positions."""
    rng = np.random.default_rng(seed)
    blocks = [np.arange(first, min(first + block, end)) for first in range(begin, end, block)]
    return np.concatenate([np.sort(rng.choice(each, min(count, len(each)), replace=False)) for each in blocks])


def attention_weights(query: Floats, key: Floats, positions: Ints, scale: float) -> Floats:
    """Return the causal attention of sampled queries, [Hkv, s, n], as the mean over the query heads of each KV head.

    query: [s, Hq, D], those at `positions`.
    key: [n, Hkv, D], all of the text.
    """
    group = query.shape[1] // key.shape[1]
    found = np.zeros((key.shape[1], len(query), len(key)), np.float32)
    later = np.arange(len(key)) > positions[:, None]
    for head in range(query.shape[1]):
        logits = query[:, head] @ key[:, head // group].T * scale
        logits[later] = -np.inf
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        found[head // group] += weights / weights.sum(axis=1, keepdims=True) / group
    return found


def kept_share(weights: Floats, positions: Ints, rows: Sequence[StoredRow]) -> NDArray[np.float64]:
    """Return the sum of the weights on tokens that were held when each query was computed, [layers, Hkv, s].

    weights: [layers, Hkv, s, n], whose rows each sum up to 1.
    positions: [s], those of the queries.
    rows: of WatchKept.
    """
    found = np.ones(weights.shape[:3], np.float64)
    evictions = [row.processed for row in rows]
    for index, position in enumerate(positions.tolist()):
        number = bisect_right(evictions, position)
        if not number:
            continue
        row, own = rows[number - 1], weights[:, :, index]
        has = np.arange(row.kept.shape[2]) < row.left[..., None]
        old = (np.take_along_axis(own, row.kept, axis=2) * has).sum(axis=2, dtype=np.float64)
        found[:, :, index] = old + own[:, :, row.processed : position + 1].sum(axis=2, dtype=np.float64)
    return found
