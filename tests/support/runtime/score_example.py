"""The worked example of scores that several tests share: two KV heads of 24 tokens, four query heads, a window of 4."""

from __future__ import annotations

import numpy as np

WINDOW, KERNEL = 4, 3


def example_keys() -> np.ndarray:
    """Return float64 [2, 24, 8]."""
    h, i, d = np.ogrid[1:3, 1:25, 1:9]
    return np.sin(0.7 * h * d + 0.21 * (i % 9) * d) + 0.3 * np.cos(0.13 * i * h + d)


def example_queries() -> np.ndarray:
    """Return float64 [4, 4, 8]."""
    q, t, d = np.ogrid[1:5, 1:5, 1:9]
    return np.array([1, 1, 3, 3.0])[:, None, None] * np.cos(0.5 * q * d + 0.4 * t)
