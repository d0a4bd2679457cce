"""Tests of the choice of tokens before they are encoded: what stays of given scores, by hand and by a slow search."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.cache.policies.evict import EvictConfig
from enginewright.runtime.cache.policies.whole_records import EvictRecords
from enginewright.runtime.cache.policies.whole_tiles import EvictTiles
from enginewright.runtime.cache.policy import EncodedRow, LayerScores
from enginewright.runtime.errors import RequestError
from tests.support.runtime.toy_model import make_cache

SIZE = 4


class Scores:
    """A session that scores one row of one layer and head."""

    offers = frozenset[str]()

    def __init__(self, scores: np.ndarray) -> None:
        self._scores = scores.astype(np.float32)[None]

    def score(self, row: Any) -> list[LayerScores]:
        return [LayerScores(importance=self._scores, redundancy=None)]


def policy(kind: type[EvictRecords] | type[EvictTiles], window: int = 1, **options: Any) -> Any:
    plain = make_cache(SIZE, (0, 0, 0, 0))
    cache = dataclasses.replace(plain, layers=plain.layers[1:2])  # which has one head
    return kind(EvictConfig(score="snapkv", kernel=1, window=window, **options), cache)


def row(stored: int, encoded: int = 0) -> EncodedRow:
    lens = np.array([[stored]], np.int64)
    return EncodedRow(
        row=0,
        prompt_tokens=0,
        processed=stored,
        stored=lens,
        kept=np.zeros((1, 1, 0), np.int64),
        left=0 * lens,
        tile_tokens=SIZE,
        encoded=np.array([[encoded]], np.int64),
    )


def kept(scores: list[float], encoded: int, budget: int, window: int = 1) -> list[int]:
    own = policy(EvictRecords, window, budget=budget, interval=SIZE, granularity="record")
    (mask,) = own.keep([row(len(scores), encoded)], Scores(np.array(scores)))
    return np.flatnonzero(mask[0, 0]).tolist()


def test_by_hand() -> None:
    # the first tile, two encoded ones of means 2.5 and 3, a chosen token, four new ones, and the window
    scores = [0.0] * 4 + [1, 2, 3, 4] + [3, 3, 3, 3] + [0] + [9, 1, 8, 2] + [5]
    first, second, chosen = [4, 5, 6, 7], [8, 9, 10, 11], [12]
    ends = [0, 1, 2, 3], [17]
    assert kept(scores, 12, budget=18) == list(range(18))
    assert kept(scores, 12, budget=17) == [*ends[0], *first, *second, *chosen, 13, 15, 16, *ends[1]], (
        "1, the least new one"
    )
    assert kept(scores, 12, budget=16) == [*ends[0], *first, *second, *chosen, 13, 15, *ends[1]], "and 2"
    assert kept(scores, 12, budget=15) == [*ends[0], *second, *chosen, 13, 15, *ends[1]], (
        "half of the new ones stay, and a tile goes"
    )
    assert kept(scores, 12, budget=11) == [*ends[0], *chosen, 13, 15, *ends[1]], "and the other tile"
    assert kept(scores, 12, budget=12) == [*ends[0], *second, *chosen, 13, 15, *ends[1]]
    assert kept([*scores[:4], *[0.0] * 4], 0, budget=8) == list(range(8))


def test_without_encoded_tiles_the_least_of_all_exact_tokens_leave() -> None:
    # the first tile, three chosen tokens, four new ones, and the window
    scores = [0.0] * 4 + [3, 0, 4] + [9, 1, 8, 2] + [5]
    assert kept(scores, 0, budget=10) == [0, 1, 2, 3, 4, 5, 6, 7, 9, 11], "of the new ones 1 and 2"
    assert kept(scores, 0, budget=8) == [0, 1, 2, 3, 6, 7, 9, 11], "then 0 and 3, which were chosen"


def test_what_would_leave_no_room_for_the_next_tile_leaves() -> None:
    # nothing is over the budget, but one more than SIZE - window tokens would wait
    assert kept([0.0] * 4 + [3, 1, 1, 2, 9], 0, budget=100) == list(range(9)), "four fill a tile"
    found = kept([0.0] * 4 + [3, 1, 1, 9, 9], 0, budget=100, window=2)
    assert found == [0, 1, 2, 3, 4, 6, 7, 8], "three would wait; of the two of 1 the later stays"


@given(st.integers(0, 4), st.integers(0, 3), st.integers(8, 40), st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_what_stays_is_within_the_budget(tiles: int, chosen: int, budget: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    begin = (1 + tiles) * SIZE
    scores = rng.integers(0, 5, begin + chosen + SIZE + 1).astype(float).tolist()
    found = kept(scores, begin * (tiles > 0), budget)
    assert len(found) <= budget or len(found) == len(scores)
    assert found[:SIZE] == list(range(SIZE)) and found[-1] == len(scores) - 1
    whole = [sum(at // SIZE == tile for at in found) for tile in range(1, 1 + tiles)]
    assert set(whole) <= {0, SIZE}, "encoded tiles leave as a whole"
    fresh = [at for at in found if begin + chosen <= at < len(scores) - 1]
    assert len(fresh) >= SIZE // 2 or not any(whole)


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(RequestError, match="evict: got scores with NaN"):
        kept([0.0] * 4 + [1.0, float("nan"), 1, 1, 1, 1, 1], 0, budget=8)


def test_tiles_by_hand() -> None:
    own = policy(EvictTiles, budget=3 * SIZE, granularity="tile")
    scores = [0.0] * 4 + [1, 2, 3, 4] + [9, 0, 0, 0] + [2, 2, 2, 2] + [0, 0]
    (mask,) = own.keep([row(18)], Scores(np.array(scores)))
    assert mask[0, 0].tolist() == [True, True, False, False], "of three full tiles the first stays, and the mean of 2.5"
    (mask,) = own.keep([row(17)], Scores(np.array(scores[:17])))
    assert mask[0, 0].tolist() == [True, True, False, False], "the window lies in the unfinished tile alone"
    (mask,) = own.keep([row(16)], Scores(np.array(scores[:16])))
    assert mask[0, 0].tolist() == [True, True, False, True], "the newest token stays, and its tile"
    assert own.keep([row(12)], Scores(np.array(scores[:12])))[0].all(), "three tiles are within the budget"
