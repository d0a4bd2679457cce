"""Tests of budgets of layers and heads: exact sums, ties, and values worked out by other means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.cache.policies.budgets import (
    ada_budgets,
    ada_counts,
    guard,
    pyramid_budgets,
    rescale,
    uniform,
)
from enginewright.runtime.cache.policies.scores import importance_decode
from enginewright.runtime.errors import RequestError
from tests.support.runtime.score_example import KERNEL, example_keys, example_queries

heads_of_scores = st.lists(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), max_size=12).map(lambda each: np.array(each, np.float32)),
    min_size=1,
    max_size=5,
)


def test_uniform() -> None:
    assert uniform(7, 2, 3).tolist() == [[7, 7, 7], [7, 7, 7]]


@pytest.mark.parametrize(("layers", "last", "total"), [(32, 25, 4272), (48, 54, 7104)])
def test_a_pyramid_of_128_tokens(layers: int, last: int, total: int) -> None:
    budgets = pyramid_budgets(128, 8, layers)
    assert (budgets[0], budgets[-1], budgets.sum()) == (242, last, total)
    assert len(set(np.diff(budgets))) == 1
    mended = rescale(budgets, 128 * layers)
    assert mended.sum() == 128 * layers
    assert np.abs(mended - budgets * 128 * layers / total).max() < 1


def test_a_pyramid_of_one_layer_is_its_mean() -> None:
    assert pyramid_budgets(128, 8, 1).tolist() == [128]


@pytest.mark.parametrize(("per_head", "layers"), [(8, 4), (128, 0)])
def test_a_pyramid_of_nothing_is_refused(per_head: int, layers: int) -> None:
    with pytest.raises(ValueError, match="pyramid_budgets: got"):
        pyramid_budgets(per_head, 8, layers)


def test_equal_remainders_go_to_the_lowest_index() -> None:
    assert rescale([1, 1, 1], 5).tolist() == [2, 2, 1]
    assert rescale([0, 0, 0, 0], 6).tolist() == [2, 2, 1, 1]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=40), st.integers(0, 10**6))
def test_rescaled_budgets_have_the_total_and_stay_in_proportion(budgets: list[float], total: int) -> None:
    found = rescale(budgets, total)
    assert found.dtype == np.int64 and found.sum() == total and found.min() >= 0
    whole = sum(budgets)
    wanted = np.array(budgets) / whole * total if whole else np.full(len(budgets), total / len(budgets))
    assert np.abs(found - wanted).max() < 1 + 1e-6


@pytest.mark.parametrize("budgets", [[], [1, -1], [1, np.nan], [np.inf, 1]])
def test_budgets_that_are_none_are_refused(budgets: list[float]) -> None:
    with pytest.raises(ValueError, match="rescale: got"):
        rescale(budgets, 4)


def test_ada_counts_of_the_example() -> None:
    scores = importance_decode(example_queries(), example_keys(), KERNEL)
    assert ada_counts(scores, 8).tolist() == [7, 9]
    assert ada_budgets(scores, 12, 4).tolist() == [11, 13]


@settings(max_examples=150, deadline=None)
@given(heads_of_scores, st.integers(0, 10))
def test_ada_counts_are_those_of_a_stable_sort(heads: list[np.ndarray], per_head: int) -> None:
    pool = [(-score, head) for head, scores in enumerate(heads) for score in scores]
    best = sorted(pool, key=lambda each: each[0])[: per_head * len(heads)]  # stable: the earlier head first
    counts = [sum(head == each for _, head in best) for each in range(len(heads))]
    assert ada_counts(heads, per_head, 0.0).tolist() == counts
    assert ada_counts(heads, per_head).tolist() == [round(0.8 * count + 0.2 * per_head) for count in counts]


@settings(max_examples=100, deadline=None)
@given(heads_of_scores, st.integers(1, 10), st.integers(0, 8))
def test_ada_budgets_have_the_total(heads: list[np.ndarray], before: int, window: int) -> None:
    budgets = ada_budgets(heads, before + window, window)
    assert budgets.sum() == len(heads) * (before + window)
    assert budgets.min() >= window


def test_ada_rounds_halves_to_even() -> None:
    heads = [np.array([5.0, 5.0]), np.array([5.0]), np.array([1.0])]  # of the 3 best: 2, 1 and 0
    assert ada_counts(heads, 1, 0.5).tolist() == [2, 1, 0]  # 1.5, 1, 0.5


def test_ada_of_equal_copies_is_uniform() -> None:
    scores = np.random.default_rng(0).permutation(60)[:40].astype(np.float32)
    assert ada_budgets([scores] * 4, 20, 4).tolist() == [20] * 4


def test_ada_refuses_nan() -> None:
    with pytest.raises(RequestError, match="ada_counts: got scores with NaN"):
        ada_counts([np.array([1, np.nan])], 1)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=9), st.integers(0, 20))
def test_guard_equals_moving_one_token_at_a_time(budgets: list[int], least: int) -> None:
    if sum(budgets) < least * len(budgets):
        with pytest.raises(ValueError, match=f"expected {least} for each at least"):
            guard(np.array(budgets), least)
        return
    wanted = list(budgets)
    while min(wanted) < least:
        smallest = wanted.index(min(wanted))
        wanted[wanted.index(max(wanted))] -= 1
        wanted[smallest] += 1
    assert guard(np.array(budgets), least).tolist() == wanted
