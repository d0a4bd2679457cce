"""The random numbers of one request; they depend on nothing but its seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

_DRAWS = 64


class Draws:
    """Uniform numbers in [0, 1) of one request; number i depends on the seed and on i alone (Philox counters).

    Created by the request.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._block = -1
        self._numbers: Doubles = np.empty(0)

    def __getitem__(self, index: int) -> float:
        block, offset = divmod(index, _DRAWS)
        if block != self._block:
            philox = np.random.Philox(key=self._seed, counter=block * _DRAWS // 4)  # each counter gives four numbers
            self._numbers, self._block = np.random.Generator(philox).random(_DRAWS), block
        return float(self._numbers[offset])
