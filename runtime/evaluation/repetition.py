"""Repetition statistics of generated tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

_GRAM = 3


def repetition_ratio(tokens: Sequence[int] | NDArray[np.integer[Any]]) -> float:
    """Return the share of 3-grams that repeat an earlier one: 1 - distinct / all; 0 for fewer than 3 tokens.

    Source: arXiv 2606.10935 section V-A.6, which names the measure; the formula is ours.
    """
    ids = np.asarray(tokens).tolist()
    grams = list(zip(*(islice(ids, begin, None) for begin in range(_GRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
