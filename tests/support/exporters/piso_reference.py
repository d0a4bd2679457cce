"""An example layer for PiSO with known scales and errors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# bits, sequential, scales of the two groups, error
GROUPS_OF_4 = [
    (2, False, (0.5451264, 0.9063079), 0.3823137),
    (2, True, (0.5451264, 0.9177673), 0.3820733),
    (3, False, (0.4721661, 0.3339417), 0.0916498),
    (3, True, (0.4721661, 0.3887631), 0.0881251),
]


def example() -> tuple[Array, Array, Array, Array]:
    """The example's w, X, X with errors, and H of X alone."""
    i, n = np.arange(1, 9), np.arange(1, 17)[:, None]
    w = np.sin(1.7 * i) * (1 + 0.5 * np.cos(0.9 * i))
    x = np.sin(0.37 * n * i) + 0.2 * np.cos(1.3 * n * i + 0.5)
    x[:, 2] *= 4
    return w, x, x + 0.1 * np.sin(2.1 * n * i + 1), x.T @ x / 16
