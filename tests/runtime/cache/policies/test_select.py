"""Tests of the rule of what a head keeps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.cache.policies.select import keep, keep_mask
from enginewright.runtime.errors import RequestError

values = st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.25, 2.0, np.inf]), max_size=40)  # few, so that many are equal


def sorted_keep(scores: list[float], budget: int, window: int) -> list[int]:
    """The rule by sorting: larger scores first, of equal ones the later token."""
    held = len(scores) + window
    if held <= budget:
        return list(range(held))
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], -token))
    return sorted(order[: budget - window]) + list(range(len(scores), held))


@settings(max_examples=200, deadline=None)
@given(values, st.integers(0, 9), st.integers(1, 50))
def test_keep_equals_sorting(scores: list[float], window: int, more: int) -> None:
    kept = keep(np.array(scores, np.float32), window + more, window)
    assert kept.dtype == np.int64
    assert kept.tolist() == sorted_keep(scores, window + more, window)


def test_of_equal_scores_the_later_tokens_stay() -> None:
    assert keep(np.zeros(6, np.float32), 5, 2).tolist() == [3, 4, 5, 6, 7]
    assert keep(np.array([1, 2, 2, 2, 0], np.float32), 3, 1).tolist() == [2, 3, 5]


def test_heads_of_one_budget() -> None:
    scores = np.array([[3, 1, 2], [0, 5, 5]], np.float32)
    assert keep(scores, 3, 1).tolist() == [[0, 2, 3], [1, 2, 3]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(values, st.integers(1, 30)), min_size=1, max_size=6), st.integers(0, 9))
def test_many_heads_equal_one_at_a_time(heads: list[tuple[list[float], int]], window: int) -> None:
    width = max(len(scores) for scores, _ in heads)
    padded = np.full((len(heads), width), np.nan, np.float32)  # what lies after a head's end plays no part
    for row, (scores, _) in zip(padded, heads, strict=True):
        row[: len(scores)] = scores
    lengths = np.array([len(scores) + window for scores, _ in heads])
    budgets = np.array([window + more for _, more in heads])
    mask = keep_mask(padded, lengths, budgets, window)
    assert mask.shape == (len(heads), width + window)
    for row, (scores, more) in zip(mask, heads, strict=True):
        assert np.flatnonzero(row).tolist() == sorted_keep(scores, window + more, window)


def test_a_second_refresh_changes_nothing() -> None:
    scores = np.random.default_rng(0).random(300).astype(np.float32)
    kept = keep(scores, 128, 8)
    assert keep(scores[kept[:-8]], 128, 8).tolist() == list(range(128))


@pytest.mark.parametrize("budget", [10, 2])  # nothing has to go, and something
def test_nan_is_refused(budget: int) -> None:
    with pytest.raises(RequestError, match="keep: got scores with NaN"):
        keep(np.array([0, np.nan, 1], np.float32), budget, 1)


def test_a_budget_without_room_before_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="got a budget of 8 tokens, expected 9 or more"):
        keep(np.zeros(20, np.float32), 8, 8)
    assert keep(np.zeros(0, np.float32), 8, 8).tolist() == list(range(8))
