"""The rule of what a head keeps: the best of the tokens before the window, and the window."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.cache.policies.attention_weights import Floats, check_scores


def keep(scores: Floats, budget: int, window: int) -> NDArray[np.int64]:
    """Return the indices of the tokens that stay, ascending, int64 [..., min(n, budget)].

    All n tokens where they fit into the budget. Else the `budget - window` largest scores, of equal ones the later tokens, and
    the last `window` tokens.

    scores: [..., n - window] of the tokens before the window; leading axes, such as one of heads, share the budget.

    Raises:
        RequestError: a score is NaN.
        ValueError: tokens have to go, and the budget has no room for one before the window.
    """
    scores = np.asarray(scores)
    rows = scores.reshape(math.prod(scores.shape[:-1]), scores.shape[-1])
    held = rows.shape[1] + window
    mask = keep_mask(rows, np.full(len(rows), held), np.full(len(rows), budget), window)
    return np.nonzero(mask)[1].reshape(*scores.shape[:-1], min(held, budget)).astype(np.int64)


def keep_mask(scores: Floats, lengths: NDArray[Any], budgets: NDArray[Any], window: int) -> NDArray[np.bool_]:
    """Return for many heads at once whether each token stays, bool [R, m + window]; False after a head's end.

    scores: [R, m], of each head its `length - window` tokens before the window, then anything.
    lengths: [R], tokens that a head has stored.
    budgets: [R], tokens that it keeps.

    Raises:
        RequestError: a score is NaN.
        ValueError: a head has to let tokens go, and its budget has no room for one before the window.
    """
    lengths, budgets = np.asarray(lengths), np.asarray(budgets)
    full = lengths > budgets
    if (budgets[full] <= window).any():
        raise ValueError(
            f"keep: got a budget of {int(budgets[full].min())} tokens, expected {window + 1} or more, the window and one before it"
        )
    before = np.arange(scores.shape[1]) < (lengths - window)[:, None]
    values = np.where(before, scores, -np.inf)
    check_scores(values, "keep")
    mask = np.arange(scores.shape[1] + window) < lengths[:, None]
    rows = np.flatnonzero(full)
    if len(rows):
        mask[rows, : scores.shape[1]] &= _largest(values[rows], before[rows], budgets[rows] - window)
    return mask


def _largest(values: Floats, valid: NDArray[np.bool_], counts: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark of each row its `counts` largest values, and the columns that are not valid, [R, m]; those hold -inf."""
    order = np.sort(values, axis=1)
    rows = np.arange(len(values))
    threshold = order[rows, values.shape[1] - counts][:, None]
    chosen = (values > threshold) | ~valid
    equal = (values == threshold) & valid
    needed = counts - (chosen & valid).sum(axis=1)
    tied = np.flatnonzero(equal.sum(axis=1) > needed)
    later = np.cumsum(equal[tied, ::-1], axis=1)[:, ::-1]  # equal scores from here on
    equal[tied] &= later <= needed[tied, None]
    return np.asarray(chosen | equal)
