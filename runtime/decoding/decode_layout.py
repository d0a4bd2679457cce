"""The order of tokens in a step in which every row decodes; kept, because the same order comes back step after step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_KEPT = 256


@dataclass(frozen=True, slots=True)
class DecodeLayout:
    """The arrays that all steps share whose rows bring the same numbers of tokens; created by `layout_of`, never written to.

    new_tokens[rows] int64: tokens of each row in the step.
    counts: the numbers in `new_tokens` that are above 0, in order of rows.
    longest: the largest number in `new_tokens`.
    rows[T] int64: the row of each of the step's T tokens.
    places[T] int64: for each token, how many of its row's tokens come before it in the step.
    query_starts, sample_rows: as in a PackedStep that samples every token.
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
