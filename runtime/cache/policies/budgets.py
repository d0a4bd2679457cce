"""Budgets: how many tokens each layer and KV head keeps, by rules that are compared at equal totals.

A budget counts the window with it. Integers are made by the largest remainder, so that totals are exact: each share is rounded
down, and the missing ones go to the largest remainders, of equal ones to the lowest index.

Sources: PyramidKV, arXiv 2406.02069; AdaKV, arXiv 2407.11550.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginewright.runtime.cache.policies.attention_weights import Floats, check_scores

Ints = NDArray[np.int64]


def uniform(per_head: int, layers: int, heads: int) -> Ints:
    """Return the same budget for each layer and head, int64 [layers, heads]."""
    return np.full((layers, heads), per_head, np.int64)


def pyramid_budgets(per_head: int, window: int, layers: int, beta: int = 20) -> Ints:
    """Return the budgets per head of PyramidKV, which fall linearly from the first layer to the last, int64 [layers].

    Their sum is not layers * per_head, because steps are rounded down; `rescale` mends it.

    beta: the last layer's tokens before the window are 1 / beta of the mean.

    Raises:
        ValueError: there is no layer, or nothing of a budget is left for tokens before the window.
    """
    if layers < 1 or per_head <= window:
        raise ValueError(
            f"pyramid_budgets: got {layers} layers and {per_head} tokens per head, expected 1 or more, and more tokens than the "
            f"window's {window}"
        )
    mean = per_head - window
    if layers == 1:
        return np.array([per_head], np.int64)
    low = mean // beta
    high = 2 * mean - low
    step = (high - low) // (layers - 1)
    budgets: Ints = high - step * np.arange(layers, dtype=np.int64) + window
    return budgets


def rescale(budgets: ArrayLike, total: int) -> Ints:
    """Return integers in proportion to `budgets` whose sum is `total`; equal ones where all budgets are 0.

    Raises:
        ValueError: a budget is negative or not finite, there is none, or the total is negative.
    """
    values = np.asarray(budgets, np.float64)
    if not values.size or not np.isfinite(values).all() or values.min() < 0 or total < 0:
        raise ValueError(f"rescale: got {budgets!r} and a total of {total}, expected finite numbers from 0 up")
    whole = math.fsum(values.tolist())
    return largest_remainder(total * values / whole if whole else np.full(values.shape, total / values.size), total)


def largest_remainder(shares: NDArray[np.float64], total: int) -> Ints:
    """Return integers whose sum is `total`: the shares [n], of sum `total`, rounded down or up."""
    floors = np.floor(shares)
    counts = floors.astype(np.int64)
    missing = total - int(counts.sum())
    counts[np.argsort(floors - shares, kind="stable")[:missing]] += 1
    return counts


def ada_counts(scores: Sequence[Floats] | Floats, per_head: int, floor: float = 0.2) -> Ints:
    """Return how many tokens before the window AdaKV gives each head of a layer, int64 [H].

    Of a head's own tokens among the layer's H * per_head largest scores: count * (1 - floor) + floor * per_head, rounded, halves
    to even. The sum may be off by a few because of that; `ada_budgets` mends it.

    scores: one array a head; of equal scores the earlier head's and the earlier token's come first.

    Raises:
        RequestError: a score is NaN.
    """
    counts = _count_largest(scores, len(scores) * per_head)
    rounded: Ints = np.rint(counts * (1 - floor) + floor * per_head).astype(np.int64)
    return rounded


def ada_budgets(scores: Sequence[Floats] | Floats, per_head: int, window: int, floor: float = 0.2) -> Ints:
    """Return AdaKV's budgets with the window, whose sum is H * per_head, int64 [H].

    Raises:
        RequestError: a score is NaN.
    """
    before = per_head - window
    return rescale(ada_counts(scores, before, floor), len(scores) * before) + window


def guard(budgets: Ints, least: int) -> Ints:
    """Return budgets of the same sum and at least `least`, int64 [n].

    The result is that of moving one token at a time from the largest budget, of equal ones the first, to the smallest.

    Raises:
        ValueError: the sum is too small for that.
    """
    raised = np.maximum(budgets, least)
    owed = int(raised.sum() - np.sum(budgets))
    if not owed:
        return raised
    if int(np.sum(budgets)) < least * len(raised):
        raise ValueError(
            f"guard: got {int(np.sum(budgets))} tokens for {len(raised)} heads, expected {least} for each at least; raise the "
            "budget"
        )
    low, high = (
        least,
        int(raised.max()),
    )  # the level to which the largest fall: taking all above it pays, above it + 1 not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if np.maximum(raised - middle, 0).sum() >= owed else (low, middle)
    above = np.flatnonzero(raised > low)
    surplus = int((raised[above] - low).sum()) - owed
    raised[above] = low
    raised[above[len(above) - surplus :]] += 1
    return raised


def _count_largest(scores: Sequence[Floats] | Floats, count: int) -> Ints:
    """Count each head's scores among the `count` largest of all heads, ties to the earlier head."""
    lengths = np.array([len(head) for head in scores], np.int64)
    pool = np.concatenate([np.asarray(head) for head in scores])
    check_scores(pool, "ada_counts")
    if count >= len(pool):
        return lengths
    if count <= 0:
        return np.zeros_like(lengths)
    threshold = np.partition(pool, len(pool) - count)[len(pool) - count]
    above, equal = count_in_heads(pool > threshold, lengths), count_in_heads(pool == threshold, lengths)
    earlier = np.cumsum(equal) - equal
    counts: Ints = above + np.clip(count - above.sum() - earlier, 0, equal)
    return counts


def count_in_heads(marked: NDArray[np.bool_], lengths: NDArray[Any]) -> Ints:
    """Count what is marked of each head, where the heads' tokens follow each other in one array."""
    sums = np.concatenate([[0], np.cumsum(marked, dtype=np.int64)])
    ends = np.cumsum(lengths)
    return np.asarray(sums[ends] - sums[ends - lengths], np.int64)
