"""Estimates with 95 % intervals: from the problems or texts of a sample to all of their kind.

The draws of the sample are problems or texts. Tokens of one text are not independent, so a text's tokens stay together.

Shares of problems have Wilson's interval. The difference of two engines on the same problems has Newcombe's interval for
pairs. Both keep a width even if every answer is right, or every one wrong, where the bootstrap has none. All other
estimates have the bias-corrected and accelerated bootstrap (BCa) over texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000
WORST_SHARE = 0.05

Floats: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Floats], Floats]
"""Function of weights[b, n], how often each of n draws counts in each of b samples; returns the statistic's values[b]."""

_NORMAL = NormalDist()
_TAIL = (1 - CONFIDENCE) / 2
_Z = _NORMAL.inv_cdf(1 - _TAIL)
_BLOCK = 2**20  # weights in memory at once
_JACKKNIFE_GROUPS = 200


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and its 95 % interval.

    value: the estimate.
    low, high: the ends of the interval; None where there are fewer than two draws.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def map(self, increasing: Callable[[float], float]) -> Estimate:
        """Return the estimate of `increasing`(value), an increasing function."""
        low, high = (None if bound is None else increasing(bound) for bound in (self.low, self.high))
        return Estimate(value=increasing(self.value), low=low, high=high)


def bootstrap(statistic: Statistic, draws: int, seed: int) -> Estimate:
    """Return `statistic` with its BCa interval over resampled draws.

    The acceleration comes from the jackknife, over groups of draws where there are many draws.

    Source: Efron, Better bootstrap confidence intervals, JASA 82 (1987).
    """
    value = float(statistic(np.ones((1, draws)))[0])
    if draws < 2:
        return Estimate(value=value)
    replicates = _evaluate(statistic, _resamples(draws, seed))
    below = float(np.mean(replicates < value) + np.mean(replicates == value) / 2)
    if replicates.min() == replicates.max():
        return Estimate(value=value, low=value, high=value)
    bias = _NORMAL.inv_cdf(min(max(below, 1 / (RESAMPLES + 1)), RESAMPLES / (RESAMPLES + 1)))
    acceleration = _acceleration(_evaluate(statistic, _left_out(draws)))
    levels = []
    for z in (bias - _Z, bias + _Z):
        scale = 1 - acceleration * z
        levels.append(_NORMAL.cdf(bias + z / scale) if scale > 0 else _NORMAL.cdf(math.copysign(math.inf, z)))
    low, high = np.quantile(replicates, levels).tolist()
    return Estimate(value=value, low=low, high=high)


def ratio(numerators: Sequence[float] | Floats, denominators: Sequence[float] | Floats) -> Statistic:
    """Return the statistic sum of numerators / sum of denominators, such as nats per token."""
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    return lambda weights: (weights @ above) / (weights @ below)


def worst_mean(values: Sequence[Floats]) -> Statistic:
    """Return the statistic mean of the largest 5 % of all draws' values; values[d]: the values of draw d."""
    joined = np.concatenate(values)
    order = np.argsort(-joined, kind="stable")
    descending = joined[order]
    owner = np.repeat(np.arange(len(values)), [len(v) for v in values])[order]

    def evaluate(weights: Floats) -> Floats:
        means = np.empty(len(weights))
        for i, row in enumerate(weights):
            each = row[owner]
            reached = np.cumsum(each)
            wanted = WORST_SHARE * reached[-1]
            taken = np.clip(wanted - (reached - each), 0, each)
            means[i] = (taken @ descending) / wanted
        return means

    return evaluate


def difference(of: Statistic, against: Statistic) -> Statistic:
    """Return the statistic `of` - `against`, a paired comparison: each resample has the same draws for both."""
    return lambda weights: of(weights) - against(weights)


def share_of_tokens(hits: Sequence[int], tokens: Sequence[int], seed: int) -> Estimate:
    """Return the share of tokens that are hits; draw d has hits[d] hits among tokens[d] tokens.

    Where all or none are hits, the bootstrap has no width. Then it has Wilson's interval, in which each draw counts as one.
    """
    total, wanted = sum(hits), sum(tokens)
    if total in (0, wanted):
        return wilson(len(tokens) if total else 0, len(tokens))
    return bootstrap(ratio(hits, tokens), len(tokens), seed)


def wilson(successes: int, trials: int) -> Estimate:
    """Return a proportion with Wilson's score interval.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    share = successes / trials
    scale = 1 + _Z**2 / trials
    middle = (share + _Z**2 / (2 * trials)) / scale
    half = _Z * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2)) / scale
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == trials else middle + half
    return Estimate(value=share, low=low, high=high)


def paired_difference(pairs: Sequence[tuple[bool, bool]]) -> Estimate:
    """Return the share of right answers in the first of each pair minus that in the second, with Newcombe's interval.

    Source: Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data,
    Statistics in Medicine 17 (1998), method 10.
    """
    n = len(pairs)
    both, first_only, second_only, neither = (
        pairs.count(outcome) for outcome in ((True, True), (True, False), (False, True), (False, False))
    )
    first, second = wilson(both + first_only, n), wilson(both + second_only, n)
    margins = (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
    cross: float = both * neither - first_only * second_only
    if cross > 0:
        cross = max(cross - n / 2, 0)  # Newcombe's continuity correction
    phi = cross / math.sqrt(margins) if margins else 0.0
    value = (first_only - second_only) / n
    low = value - _hypotenuse(_below(first), _above(second), phi)
    high = value + _hypotenuse(_above(first), _below(second), phi)
    return Estimate(value=value, low=low, high=high)


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Return the exact two-sided probability of discordant pairs at least as uneven as these, if both were equally good.

    A pair is discordant if one of its two answers is right and the other is wrong.
    """
    first_only, second_only = pairs.count((True, False)), pairs.count((False, True))
    discordant, fewer = first_only + second_only, min(first_only, second_only)
    return min(1.0, 2 * sum(math.comb(discordant, k) for k in range(fewer + 1)) / (1 << discordant))


def _resamples(draws: int, seed: int) -> Iterator[Floats]:
    """Yield the resamples in blocks, as weights [b, draws]."""
    rng = np.random.default_rng(seed)
    rows = max(1, min(RESAMPLES, _BLOCK // draws))
    for begin in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - begin)
        picks = rng.integers(0, draws, (count, draws)) + draws * np.arange(count)[:, None]
        yield np.bincount(picks.ravel(), minlength=count * draws).reshape(count, draws).astype(np.float64)


def _left_out(draws: int) -> Iterator[Floats]:
    """Yield weights [1, draws] that leave out one draw, or one group of draws where there are many."""
    for group in np.array_split(np.arange(draws), min(draws, _JACKKNIFE_GROUPS)):
        weights = np.ones((1, draws))
        weights[0, group] = 0
        yield weights


def _evaluate(statistic: Statistic, blocks: Iterator[Floats]) -> Floats:
    return np.concatenate([statistic(weights) for weights in blocks])


def _acceleration(left_out: Floats) -> float:
    """Return the acceleration of BCa, a measure of skewness, from the jackknife's values."""
    deviations = left_out.mean() - left_out
    spread = float((deviations**2).sum())
    return float((deviations**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def _below(estimate: Estimate) -> float:
    assert estimate.low is not None
    return estimate.value - estimate.low


def _above(estimate: Estimate) -> float:
    assert estimate.high is not None
    return estimate.high - estimate.value


def _hypotenuse(a: float, b: float, correlation: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))
