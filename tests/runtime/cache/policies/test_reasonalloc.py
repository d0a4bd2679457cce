"""Tests of ReasonAlloc's budgets: values worked out by other means, exact sums, bounds and symmetries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.cache.policies.reasonalloc import (
    best_counts,
    head_budgets,
    layer_budgets,
    needed_tokens,
    share,
)
from enginewright.runtime.cache.policies.select import keep
from enginewright.runtime.errors import RequestError

demands = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e6)), min_size=1, max_size=24)


@pytest.mark.parametrize(
    ("demand", "low", "high", "total", "wanted", "strict"),
    [
        ([10000, 1, 1, 1], 256, 2048, 4096, [2979, 373, 372, 372], False),
        ([10000, 1, 1, 1], 256, 2048, 4096, [2048, 683, 683, 682], True),
        ([900, 400, 100, 100], 25, 200, 400, [172, 114, 57, 57], False),
        ([512, 0, 0, 0], 32, 512, 512, [431, 27, 27, 27], False),
        ([128] * 4, 32, 512, 512, [128] * 4, False),
    ],
)
def test_shares(demand: list[float], low: float, high: float, total: int, wanted: list[int], strict: bool) -> None:
    found = share(demand, total, 0.5, low, high, strict=strict)
    assert found.dtype == np.int64 and found.tolist() == wanted


def test_layers_of_the_example() -> None:
    layer = np.arange(12)
    demand = 60 + 50 * np.cos(0.9 * layer) + 400 * (layer == 0) + 180 * (layer == 10)
    plain = [2138, 1131, 826, 456, 461, 833, 1135, 1243, 1127, 819, 1652, 467]
    assert layer_budgets(demand, 256, 4).tolist() == plain
    strict = [2048, 1141, 834, 460, 465, 841, 1145, 1254, 1136, 826, 1667, 471]
    assert layer_budgets(demand, 256, 4, strict=True).tolist() == strict


def example_heads() -> list[np.ndarray]:
    scales, lengths = (0.05, 0.3, 1, 0.5), (40, 24, 56, 32)
    return [
        scale * np.sin(0.37 * (head + 1) * (np.arange(length) + 1)) + 0.05 * np.cos(1.7 * np.arange(length))
        for head, (scale, length) in enumerate(zip(scales, lengths, strict=True))
    ]


def test_heads_of_the_examples() -> None:
    toy = [np.array([0.9, 0.8, 0.7, 0.1]), np.array([0.75, 0.2, 0.15, 0.05])]
    assert best_counts(toy, 4).tolist() == [3, 1] and head_budgets(toy, 4).tolist() == [3, 1]
    assert best_counts(example_heads(), 64).tolist() == [10, 11, 27, 16]
    assert head_budgets(example_heads(), 64).tolist() == [13, 14, 21, 16]


def test_needed_tokens_of_known_distributions() -> None:
    zipf = 1 / np.arange(1, 1001)
    assert needed_tokens([0.5, 0.3, 0.1, 0.06, 0.04]) == 4
    assert [needed_tokens(np.full(count, 1 / count)) for count in (100, 20)] == [93, 19]
    assert needed_tokens(np.eye(9)[3]) == 1
    assert needed_tokens(0.5 ** np.arange(1, 61)) == 4
    assert needed_tokens(zipf / zipf.sum()) == 592
    counts = []
    for head, factor in zip(example_heads(), (1, 4, 8, 16), strict=True):
        weights = np.exp(factor * head)
        counts.append(needed_tokens(weights / weights.sum()))
    assert counts == [37, 17, 13, 7]


def test_weights_that_never_reach_the_share_are_all_needed() -> None:
    assert needed_tokens([0.3, 0.2]) == 2  # an attention sink takes the rest
    assert needed_tokens([]) == 0


@settings(max_examples=200, deadline=None)
@given(demands, st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.booleans())
def test_shares_have_the_total(demand: list[float], total: int, exponent: float, strict: bool) -> None:
    mean = total / len(demand)
    found = share(demand, total, exponent, 0.25 * mean, 2 * mean, strict=strict)
    assert found.sum() == total
    assert found.min() >= int(0.2 * mean * (1 - 1e-9))  # 0.25 of the mean, over at most 1.25 of the total


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=24), st.integers(1, 10**5))
def test_strict_bounds_hold_but_for_the_rounding(demand: list[float], mean: int) -> None:
    found = share(demand, mean * len(demand), 0.5, 0.25 * mean, 2.0 * mean, strict=True)
    assert found.min() >= 0.25 * mean - 1 and found.max() <= 2 * mean + 1


def test_strict_bounds_with_demands_of_zero() -> None:
    assert share([4, 0, 0, 0], 100, 0.5, 10, 70, strict=True).tolist() == [70, 10, 10, 10]
    assert share([4, 0, 0, 0], 400, 0.5, 10, 70, strict=True).tolist() == [280, 40, 40, 40]  # no factor reaches it


@settings(max_examples=100, deadline=None)
@given(demands, st.integers(1, 10**5))
def test_shares_follow_their_demand_into_another_order(demand: list[float], mean: int) -> None:
    order = np.random.default_rng(mean).permutation(len(demand))
    total = mean * len(demand)
    first = share(demand, total, 0.5, 0.25 * mean, 2.0 * mean)
    second = share(np.array(demand)[order], total, 0.5, 0.25 * mean, 2.0 * mean)
    assert sorted(first) == sorted(second)
    assert np.abs(first[order] - second).max() <= 1  # equal remainders go by the index
    assert np.array_equal(share(np.array(demand) * 4**7, total, 0.5, 0.25 * mean, 2.0 * mean), first)


@pytest.mark.parametrize("count", [1, 3, 7, 30])
def test_flat_demand_or_no_exponent_is_uniform(count: int) -> None:
    assert layer_budgets([60.7] * count, 256, 3).tolist() == [768] * count
    assert layer_budgets(np.arange(count), 256, 3, gamma=0).tolist() == [768] * count
    assert layer_budgets([0.0] * count, 256, 3).tolist() == [768] * count
    scores = np.random.default_rng(count).random(300)
    assert head_budgets([scores] * count, 128 * count).tolist() == [128] * count
    ragged = [scores[: 10 * head + 1] for head in range(count)]
    assert head_budgets(ragged, 128 * count, beta=0).tolist() == [128] * count


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=9).map(lambda each: np.array(each, np.float32)),
        min_size=1,
        max_size=6,
    ),
    st.integers(3, 40),
)
def test_head_budgets_have_the_total_and_the_least(heads: list[np.ndarray], per_head: int) -> None:
    budget = per_head * len(heads)
    found = head_budgets(heads, budget, least=3)
    assert found.sum() == budget and found.min() >= 3
    pool = np.sort(np.concatenate(heads))[::-1]
    if len(pool):
        threshold = pool[min(budget, len(pool)) - 1]
        assert best_counts(heads, budget).tolist() == [int((scores >= threshold).sum()) for scores in heads]


def test_one_head_gets_the_whole_budget() -> None:
    assert head_budgets([np.arange(50.0)], 20, least=9).tolist() == [20]


def test_a_starved_head_keeps_the_least_and_grows_again() -> None:
    high, low = np.linspace(1, 2, 200), np.linspace(0, 0.5, 200)
    starved = head_budgets([high, low], 40, floor=0.0, least=9)
    assert starved.tolist() == [31, 9]
    assert head_budgets([low, high], 40, floor=0.0, least=9).tolist() == [9, 31]


def test_a_head_that_attends_widely_gets_more_and_more_is_retained() -> None:
    """One head needs hundreds of tokens, three need a few: budgets by demand retain more than equal ones."""
    wide, narrow = np.full(500, 1 / 500), 0.9 ** np.arange(500) * 0.1
    heads = [wide, narrow, narrow, narrow]
    total = 480

    def retained(budgets: np.ndarray) -> float:
        return sum(weights[keep(weights, int(count), 0)].sum() for weights, count in zip(heads, budgets, strict=True))

    by_demand = share([needed_tokens(weights) for weights in heads], total, 0.5, 30, total)
    assert retained(by_demand) > retained(np.full(4, 120)) + 0.1


@pytest.mark.parametrize("demand", [[], [1, -1], [np.nan, 1], [np.inf], [[1, 2]]])
def test_demand_that_is_none_is_refused(demand: list[float]) -> None:
    with pytest.raises(ValueError, match="share: demand: got"):
        share(demand, 10, 0.5, 1, 5)


@pytest.mark.parametrize(("total", "low", "high"), [(-1, 0, 1), (10, -1, 5), (10, 6, 5)])
def test_bounds_out_of_order_are_refused(total: int, low: float, high: float) -> None:
    with pytest.raises(ValueError, match=f"got a total of {total} within {low} to {high}"):
        share([1, 2], total, 0.5, low, high)


def test_a_budget_below_the_least_is_refused() -> None:
    with pytest.raises(ValueError, match="got 17 tokens for 2 heads, expected 9"):
        head_budgets([np.arange(9.0)] * 2, 17, least=9)


def test_nan_is_refused() -> None:
    with pytest.raises(RequestError, match="head_budgets: got scores with NaN"):
        head_budgets([np.array([1, np.nan])], 1)
