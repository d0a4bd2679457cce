"""Tests of the repetition statistics of generated tokens."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.runtime.evaluation.repetition import repetition_ratio


@pytest.mark.parametrize(
    ("tokens", "ratio"),
    [
        ([1, 2, 3, 4, 5, 6], 0),
        ([1, 2, 3, 1, 2, 3, 1, 2, 3], 4 / 7),
        ([7] * 10, 0.875),
        ([1, 2], 0),
        ([], 0),
        ([1, 2, 3], 0),
        ([1, 2, 3, 4, 1, 2, 3, 5], 1 / 6),
    ],
)
def test_repetition_ratio(tokens: list[int], ratio: float) -> None:
    assert repetition_ratio(tokens) == pytest.approx(ratio, abs=1e-12)
    assert repetition_ratio(np.array(tokens, np.int64)) == pytest.approx(ratio, abs=1e-12)
