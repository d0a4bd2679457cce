"""The length of an emission: how many heads in a row predict the right tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def accept_lengths(head_tokens: ArrayLike, target: ArrayLike) -> NDArray[np.int64]:
    """Return L* of each position: how many heads in a row, from the first, predict the target.

    head_tokens: [positions, m], with head j = 1 .. m in column j - 1.
    target: [positions, m], the right token for each of them. Or [T], a sequence: head j at position t then predicts
        target[t + 1 + j], and the result covers the positions t <= T - 2 - m. head_tokens may then also be [m, positions]:
        the heads are along the shorter axis.

    Formula: max{L : heads 1 .. L are all right}, stopping at the first miss (equation 6 of the paper).

    Raises:
        ValueError: the shapes do not fit together.
    """
    heads, wanted = np.asarray(head_tokens), np.asarray(target)
    if heads.ndim != 2:
        raise ValueError(f"head_tokens: got shape {list(heads.shape)}, expected [positions, heads]")
    if wanted.ndim == 1:
        heads, wanted = _align(heads, wanted)
    if wanted.shape != heads.shape:
        raise ValueError(f"target: got shape {list(wanted.shape)}, expected {list(heads.shape)} as head_tokens, or [T]")
    lengths: NDArray[np.int64] = np.cumprod(heads == wanted, axis=1, dtype=np.int64).sum(axis=1)
    return lengths


def _align(heads: NDArray[Any], sequence: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the predictions and the tokens of the sequence that they are about, both [positions, m]."""
    if heads.shape[0] < heads.shape[1]:
        heads = heads.T
    count = heads.shape[1]
    positions = max(0, min(len(heads), len(sequence) - 1 - count))
    about = np.arange(positions)[:, None] + 2 + np.arange(count)
    return heads[:positions], sequence[about]
