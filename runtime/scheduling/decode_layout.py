"""Where the tokens of a step lie in which every row decodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_KEPT = 256


@dataclass(frozen=True, slots=True)
class DecodeLayout:
    """The arrays of a step that are the same whenever its rows bring as many tokens; nobody writes to them.

    new_tokens[rows] int64: tokens of each row. counts: those above 0. longest: the largest.
    rows[T], places[T] int64: the row of each token, and how many of the row's own come before it.
    query_starts, sample_rows: as of a PackedStep that samples every token.
    """

    new_tokens: Ints
    counts: list[int]
    longest: int
    rows: Ints
    places: Ints
    query_starts: NDArray[np.int32]
    sample_rows: Ints


@lru_cache(maxsize=_KEPT)
def layout_of(new_tokens: bytes) -> DecodeLayout:
    """Return the layout of a step whose rows bring `new_tokens` tokens, given as the bytes of an int64 array."""
    each = np.frombuffer(new_tokens, np.int64)
    counts = [count for count in each.tolist() if count]
    starts = np.zeros(len(each) + 1, np.int32)
    each.cumsum(out=starts[1:])
    rows = np.arange(len(each)).repeat(each)
    tokens = np.arange(len(rows))
    return DecodeLayout(each, counts, max(counts), rows, tokens - starts[rows], starts, tokens)
