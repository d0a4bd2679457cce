"""Tests of the choice of tokens before they are encoded: what stays of given scores, by hand and by a slow search."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.cache.policies.evict import EvictConfig
from enginewright.runtime.cache.policies.whole_records import EvictRecords, fill
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
    # the first tile, an encoded one of mean 2.5, then seven exact tokens of which the last is the window
    scores = [0.0, 0, 0, 0, 1, 2, 3, 4, 9, 1, 8, 2, 7, 0, 5]
    everything = list(range(15))
    assert kept(scores, 8, budget=15) == everything
    assert kept(scores, 8, budget=13) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 14], (
        "9, 8 and 7, then the tile, then 2"
    )
    assert kept(scores, 8, budget=11) == [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14], "singles take what a tile cannot"
    assert kept(scores, 8, budget=8) == [0, 1, 2, 3, 8, 10, 12, 14], "the tile does not fit any more"
    assert kept([*scores[:4], *[10.0] * 4, *scores[8:]], 8, budget=12) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14]


def test_what_would_leave_no_room_for_the_next_tile_leaves() -> None:
    # nothing is over the budget, but one more than SIZE - window tokens would wait
    assert kept([0.0] * 4 + [3, 1, 1, 2, 9], 0, budget=100) == list(range(9)), "four fill a tile"
    found = kept([0.0] * 4 + [3, 1, 1, 9, 9], 0, budget=100, window=2)
    assert found == [0, 1, 2, 3, 4, 6, 7, 8], "three would wait; of the two of 1 the later stays"


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
    st.data(),
    st.integers(0, 30),
)
@settings(max_examples=200, deadline=None)
def test_what_is_taken_is_what_fits_in_order(scores: list[int], data: st.DataObject, room: int) -> None:
    costs = data.draw(st.lists(st.sampled_from([1, SIZE]), min_size=len(scores), max_size=len(scores)))
    chosen = fill(np.array(scores, np.float32), np.array(costs), room)
    left, wanted = room, set[int]()
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i], -i)):
        if costs[index] <= left:
            wanted.add(index)
            left -= costs[index]
    assert set(np.flatnonzero(chosen).tolist()) == wanted


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
