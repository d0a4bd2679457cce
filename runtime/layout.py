"""Where the tokens of a step lie in which every row decodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_KEPT = 256


@dataclass(frozen=True, slots=True)
class Layout:
    """The arrays of a step that are the same whenever its rows bring as many tokens; read-only.

    share[rows] int64: tokens of each row; longest: of them. rows[T] and places[T] int64: the row of each token, and how many
    of the row's own come before it. query_starts, sample_rows: as of a PackedStep that samples every token.
    behind: of each row that brings tokens, where those behind its first one begin and end.
    """

    share: Ints
    longest: int
    rows: Ints
    places: Ints
    query_starts: NDArray[np.int32]
    sample_rows: Ints
    behind: tuple[tuple[int, int], ...]


@lru_cache(maxsize=_KEPT)
def layout_of(share: bytes) -> Layout:
    """Return the layout of a step whose rows bring `share` tokens, given as the bytes of an int64 array."""
    counts = np.frombuffer(share, np.int64)
    starts = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    rows = np.repeat(np.arange(len(counts)), counts)
    tokens = np.arange(len(rows))
    places = tokens - starts[rows]
    for array in (rows, places, starts, tokens):
        array.flags.writeable = False
    behind = tuple(
        (start + 1, end) for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True) if end > start
    )
    return Layout(counts, int(counts.max()), rows, places, starts, tokens, behind)
