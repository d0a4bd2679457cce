"""Tests of intervals against published values, and of their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from enginewright.runtime.evaluation.intervals import (
    Estimate,
    bootstrap,
    difference,
    mcnemar,
    paired_difference,
    ratio,
    share_of_tokens,
    wilson,
    worst_mean,
)


def _pairs(both: int, first: int, second: int, neither: int) -> list[tuple[bool, bool]]:
    return [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither


def _bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None and estimate.high is not None
    return estimate.low, estimate.high


def _width(estimate: Estimate) -> float:
    low, high = _bounds(estimate)
    return high - low


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_published_values(successes: int, trials: int, low: float, high: float) -> None:
    """The four cases of Newcombe, Two-sided confidence intervals for the single proportion (1998), table I."""
    assert _bounds(wilson(successes, trials)) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(trials - successes, trials)
    assert _bounds(mirrored) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_paired_difference_gives_the_published_value() -> None:
    """An example of Newcombe's paper on paired differences, whose pairs are 20, 12, 2, 16."""
    estimate = paired_difference(_pairs(20, 12, 2, 16))
    assert estimate.value == pytest.approx(0.2)
    assert _bounds(estimate) == pytest.approx((0.0562, 0.3292), abs=5e-5)
    swapped = paired_difference(_pairs(20, 2, 12, 16))
    assert _bounds(swapped) == pytest.approx((-0.3292, -0.0562), abs=5e-5)


@pytest.mark.parametrize("counts", [(50, 0, 0, 0), (0, 0, 0, 50), (25, 0, 0, 25)])
def test_agreement_of_all_pairs_is_no_certainty(counts: tuple[int, int, int, int]) -> None:
    estimate = paired_difference(_pairs(*counts))
    low, high = _bounds(estimate)
    assert estimate.value == 0 and low <= 0 <= high and not estimate.excludes_zero
    if counts != (25, 0, 0, 25):  # there the correlation is perfect
        assert 0.05 < high - low < 0.2


def test_a_difference_excludes_zero_only_when_its_pairs_are_uneven() -> None:
    assert paired_difference(_pairs(20, 12, 2, 16)).excludes_zero
    assert not paired_difference(_pairs(20, 8, 6, 16)).excludes_zero


def test_mcnemar_is_exact() -> None:
    assert mcnemar(_pairs(20, 12, 2, 16)) == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert mcnemar(_pairs(5, 3, 3, 5)) == 1.0
    assert mcnemar(_pairs(9, 0, 0, 1)) == 1.0


def test_bootstrap_of_a_mean_is_the_normal_interval_where_that_holds() -> None:
    values = np.random.default_rng(0).normal(3, 1, 400)
    error = values.std(ddof=1) / 20
    low, high = _bounds(bootstrap(ratio(values, np.ones(400)), 400, seed=0))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_bootstrap_covers_the_truth_of_skewed_values() -> None:
    """95 % is promised; resampling 60 draws of a log-normal reaches about 91, and the plain normal interval less."""
    rng, truth, hits = np.random.default_rng(1), np.exp(0.5), 0
    for seed in range(200):
        values = rng.lognormal(0, 1, 60)
        low, high = _bounds(bootstrap(ratio(values, np.ones(60)), 60, seed))
        hits += low <= truth <= high
    assert 0.87 <= hits / 200 <= 0.98


def test_a_biased_statistic_of_skewed_values_is_corrected() -> None:
    """The interval equals scipy's; plain percentiles differ."""
    values = np.random.default_rng(7).lognormal(0, 1, 40)

    def variance(weights: np.ndarray) -> np.ndarray:
        mean = weights @ values / weights.sum(axis=1)
        return np.asarray(weights @ values**2 / weights.sum(axis=1) - mean**2)

    low, high = _bounds(bootstrap(variance, 40, seed=0))
    expected = {
        method: stats.bootstrap((values,), np.var, method=method, n_resamples=20000, rng=0).confidence_interval
        for method in ("BCa", "percentile")
    }
    assert (low, high) == pytest.approx(tuple(expected["BCa"]), rel=0.1)
    assert expected["percentile"][0] < 0.75 * low and expected["percentile"][1] < 0.9 * high


def test_tokens_of_one_text_are_one_draw() -> None:
    """A hundred equal tokens tell no more about other texts than one."""
    means = np.random.default_rng(2).random(30)
    once = bootstrap(ratio(means, np.ones(30)), 30, seed=0)
    often = bootstrap(ratio(100 * means, np.full(30, 100.0)), 30, seed=0)
    assert _bounds(once) == pytest.approx(_bounds(often))


def test_longer_texts_weigh_more() -> None:
    estimate = bootstrap(ratio([1.0, 30.0], [1.0, 10.0]), 2, seed=0)
    assert estimate.value == pytest.approx(31 / 11)
    assert _bounds(estimate) == pytest.approx((1.0, 3.0))


def test_a_paired_difference_is_sharper_than_its_parts() -> None:
    rng = np.random.default_rng(3)
    hard = rng.lognormal(0, 1, 100)  # how hard each text is, for both engines
    ours, theirs = ratio(hard + 0.02 + rng.normal(0, 0.01, 100), np.ones(100)), ratio(hard, np.ones(100))
    estimate = bootstrap(difference(ours, theirs), 100, seed=0)
    assert estimate.excludes_zero and estimate.value == pytest.approx(0.02, abs=0.003)
    assert _width(estimate) < 0.1 * _width(bootstrap(ours, 100, seed=0))


def test_worst_mean_is_that_of_the_largest_values() -> None:
    rng = np.random.default_rng(4)
    values = [rng.random(count) for count in (40, 1, 159)]
    statistic = worst_mean(values)
    largest = np.sort(np.concatenate(values))[::-1]
    assert statistic(np.ones((1, 3)))[0] == pytest.approx(largest[:10].mean())
    drawn = np.concatenate([values[0], values[0], values[2]])  # as a resample may
    weights = np.array([[2.0, 0.0, 1.0]])
    top = np.sort(drawn)[::-1][:12]  # 5 % of 239 are 11.95
    assert statistic(weights)[0] == pytest.approx((top[:11].sum() + 0.95 * top[11]) / 11.95)


def test_one_draw_has_no_interval() -> None:
    assert bootstrap(ratio([2.0], [4.0]), 1, seed=0) == Estimate(value=0.5)


def test_equal_draws_have_an_interval_of_their_value() -> None:
    assert _bounds(bootstrap(ratio([2.0, 2.0, 2.0], [1.0, 1.0, 1.0]), 3, seed=0)) == (2.0, 2.0)


def test_a_share_at_its_bound_keeps_a_width() -> None:
    everything = share_of_tokens([100] * 20, [100] * 20, seed=0)
    assert everything.value == 1.0 and _bounds(everything) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    nothing = share_of_tokens([0] * 20, [100] * 20, seed=0)
    assert _bounds(nothing) == pytest.approx((0.0, 0.1611), abs=5e-5)
    most = share_of_tokens([100] * 19 + [90], [100] * 20, seed=0)
    assert most.value == 0.995 and _width(most) < 0.05


def test_the_seed_decides() -> None:
    values = np.random.default_rng(5).random(50)
    statistic = ratio(values, np.ones(50))
    assert bootstrap(statistic, 50, seed=7) == bootstrap(statistic, 50, seed=7)
    assert bootstrap(statistic, 50, seed=7) != bootstrap(statistic, 50, seed=8)


def test_many_draws_are_resampled_in_pieces() -> None:
    """More weights than one block holds, and more draws than jackknife groups."""
    values = np.random.default_rng(6).random(1500)
    low, high = _bounds(bootstrap(ratio(values, np.ones(1500)), 1500, seed=0))
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(1500), rel=0.1)
