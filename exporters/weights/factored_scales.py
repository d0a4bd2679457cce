"""Scales of a quantised matrix as products of a half that many columns share and a small whole number, as GGUF's K types have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class FactoredScales:
    """Scales, and minima where there are some, of a matrix [n, k]; a source creates it.

    scales[i, g] * factor[i, j // 256] is the scale of a group g of columns j, and its minimum is made in the same way.

    scales: int8 [n, groups].
    minima: int8 [n, groups]; None: there are none.
    factors: float16 [n, k / 256] of the scales; with minima [n, 2 k / 256], of each 256 columns that of the scales, then that
        of the minima.
    """

    scales: np.ndarray
    factors: np.ndarray
    minima: np.ndarray | None = None

    def restore(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The scales and minima, float32 [n, groups]."""
        if self.minima is None:
            return _multiply(self.scales, self.factors), None
        return _multiply(self.scales, self.factors[:, 0::2]), _multiply(self.minima, self.factors[:, 1::2])


def join_factored(
    parts: Sequence[FactoredScales], join: Callable[[Sequence[np.ndarray]], np.ndarray] = np.concatenate
) -> FactoredScales:
    """Return those of one matrix that is made of several with the same kinds of numbers.

    join: puts rows, of which each part has some, in their places.
    """
    minima = [part.minima for part in parts if part.minima is not None]
    return FactoredScales(
        scales=join([part.scales for part in parts]),
        factors=join([part.factors for part in parts]),
        minima=join(minima) if minima else None,
    )


def _multiply(numbers: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Numbers [n, groups] times factors [n, m], of which each is of groups / m that follow each other: float32."""
    of_factor = numbers.shape[1] // factors.shape[1]
    products: np.ndarray = np.repeat(factors.astype(np.float32), of_factor, axis=1) * numbers
    return products
