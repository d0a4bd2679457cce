"""The numpy definition of GreedySample, which `plugins/ops/greedy_sample.py` declares."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def greedy_sample(logits: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Index of each row's largest logit [N]; -1 if that logit is not finite or the row has a NaN."""
    tokens: NDArray[np.int64] = logits.argmax(axis=1)
    tokens[~np.isfinite(logits.max(axis=1))] = -1
    return tokens
