"""ReasonAlloc's budgets: of layers by the attention that each needs, of heads by their share of a layer's largest scores.

Both are powers of a demand, clipped around the mean (`share`). The layers' demand is calibrated once for each model; the
heads' is counted anew whenever tokens leave. A layer's or head's budget counts the window with it.

Source: ReasonAlloc, arXiv 2606.11164, equations 1 to 3 and Algorithm 1. Rounding, the guard and `strict` are ours: the paper's
last step, which makes the sum right, goes beyond its own bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginewright.runtime.cache.policies.attention_weights import Floats, check_scores
from enginewright.runtime.cache.policies.budgets import Ints, count_in_heads, guard, largest_remainder

TOLERANCE = 1e-6  # of a sum of weights
HALVINGS = 200


def share(
    demand: ArrayLike, total: int, exponent: float, low: float, high: float, *, strict: bool = False
) -> NDArray[np.int64]:
    """Return integers of sum `total` that follow demand ** exponent, int64 [n].

    The powers are scaled to the total, clipped to [low, high], scaled to the total again and rounded by the largest remainder.
    Equal ones where all demands are 0.

    strict: whether the bounds hold in the end, too, but for the rounding: the powers are scaled by the one factor with
        which their clipped sum is the total. Where the bounds leave no such factor, the last scaling goes beyond them.

    Raises:
        ValueError: a demand is negative or not finite, there is none, or a bound or the total is out of order.
    """
    values = np.asarray(demand, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all() or values.min() < 0:
        raise ValueError(f"share: demand: got {demand!r}, expected finite numbers from 0 up")
    if total < 0 or not 0 <= low <= high:
        raise ValueError(
            f"share: got a total of {total} within {low} to {high}, expected 0 <= total and 0 <= low <= high"
        )
    powers = values**exponent  # 0 ** 0 is 1
    whole = _sum(powers)
    if not whole:
        return largest_remainder(np.full(values.shape, total / values.size), total)
    clipped = _clip_to(powers, total, low, high) if strict else np.clip(total * powers / whole, low, high)
    scaled = total * clipped / (_sum(clipped) or 1.0)
    return largest_remainder(scaled, total)


def _clip_to(powers: NDArray[np.float64], total: int, low: float, high: float) -> NDArray[np.float64]:
    """The powers times the one factor with which their clipped sum is the total."""
    under, over = 0.0, max(high, 1.0) / float(powers[powers > 0].min())  # at `over` each power is at the upper bound
    for _ in range(HALVINGS):
        middle = (under + over) / 2
        if not under < middle < over:
            break
        if _sum(np.clip(middle * powers, low, high)) < total:
            under = middle
        else:
            over = middle
    return np.clip(over * powers, low, high)


def layer_budgets(
    demand: ArrayLike, tokens_per_head: int, kv_heads: int, *, gamma: float = 0.5, strict: bool = False
) -> NDArray[np.int64]:
    """Return the tokens of all KV heads of each layer, int64 [L], whose sum is L * kv_heads * tokens_per_head.

    demand: [L], of the layers that take part; its unit plays no part.
    gamma: the power of a demand.

    Raises:
        ValueError: those of `share`.
    """
    values = np.asarray(demand, np.float64)
    mean = tokens_per_head * kv_heads
    return share(values, mean * values.size, gamma, 0.25 * mean, 2.0 * mean, strict=strict)


def head_budgets(
    scores: Sequence[Floats] | Floats, budget: int, *, beta: float = 0.5, floor: float = 0.25, least: int = 0
) -> NDArray[np.int64]:
    """Return the tokens of each head of a layer, int64 [H], whose sum is `budget`.

    A head's demand is the number of its tokens that score at least as high as the `budget`-th best of the layer.

    scores: one array a head, of its tokens before the window.
    beta: the power of a demand.
    floor: the share of the mean budget below which no head's falls before the last scaling.
    least: tokens that each head gets at least; the window's and one more.

    Raises:
        RequestError: a score is NaN.
        ValueError: the budget is too small for `least`, and those of `share`.
    """
    heads = len(scores)
    counts = best_counts(scores, budget)
    return guard(share(counts, budget, beta, floor * budget / heads, budget), least)


def best_counts(scores: Sequence[Floats] | Floats, budget: int) -> Ints:
    """Count each head's scores that are at least the layer's `budget`-th largest, int64 [H]; ties count on both sides.

    Raises:
        RequestError: a score is NaN.
    """
    lengths = np.array([len(head) for head in scores], np.int64)
    pool = np.concatenate([np.asarray(head) for head in scores])
    check_scores(pool, "head_budgets")
    count = min(budget, len(pool))
    if count <= 0:
        return np.zeros_like(lengths)
    return count_in_heads(pool >= np.partition(pool, len(pool) - count)[len(pool) - count], lengths)


def needed_tokens(weights: ArrayLike, rho: float = 0.93) -> int:
    """Return the least number of the largest weights whose sum is at least rho; all of them where it never is.

    weights: of one query's attention, from 0 up.
    """
    ordered = np.sort(np.asarray(weights, np.float64).ravel())[::-1]
    return min(int(np.count_nonzero(np.cumsum(ordered) < rho - TOLERANCE)) + 1, ordered.size)


def _sum(values: NDArray[np.float64]) -> float:
    return math.fsum(values.tolist())  # exact, so that it does not depend on the order
