"""Finds those of many sequences of tokens whose last token would come next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

MOST_SEQUENCES = 1 << 14
"""Of two tokens or more, in one option: each step may compare all that agree in one token, while other requests wait."""


class TokenSequences:
    """Sequences of two tokens or more, by the last of their tokens that has to have come; created by a processor."""

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self._by_end: dict[int, list[tuple[int, NDArray[np.int64]]]] = {}
        for place, sequence in enumerate(sequences):
            self._by_end.setdefault(sequence[-2], []).append((place, np.array(sequence[:-1], np.int64)))

    def ending(self, tokens: NDArray[np.int64]) -> list[int]:
        """Return the places of the sequences all of whose tokens but the last one are the end of `tokens`."""
        near = self._by_end.get(int(tokens[-1]), ()) if len(tokens) else ()
        return [place for place, others in near if np.array_equal(tokens[-len(others) :], others)]


def check_count(sequences: Sequence[Sequence[int]], field: str) -> None:
    """Raise ValueError where the option `field` has more sequences than a step has time for."""
    if (count := sum(len(each) > 1 for each in sequences)) > MOST_SEQUENCES:
        raise ValueError(f"{field}: got {count} sequences of two tokens or more, expected {MOST_SEQUENCES} at most")
