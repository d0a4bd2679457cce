"""Singular components of B A, found through its factors, so that no matrix of the layer's own size is made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginewright.runtime.errors import ExportError

Doubles = NDArray[np.float64]
Factors = tuple[ArrayLike, ArrayLike]
"""B [o, r], with the adapter's scaling multiplied in, and A [r, n]."""


@dataclass(frozen=True, kw_only=True)
class Components:
    """B A [o, n] as a sum of k components u s v', with k the least of o, n and r; `decompose` creates it.

    left: [o, k], the orthonormal u.
    strengths: [k], s, from the largest to the smallest.
    right: [n, k], the orthonormal v.
    """

    left: Doubles
    strengths: Doubles
    right: Doubles


def read_pair(factors: Factors, name: str) -> tuple[Doubles, Doubles]:
    """Return B and A in float64.

    name: of the pair, for errors.

    Raises:
        ExportError: the shapes are not [o, r] and [r, n], or a number is not finite.
    """
    b, a = (np.asarray(each, np.float64) for each in factors)
    if b.ndim != 2 or a.ndim != 2 or b.shape[1] != a.shape[0] or not b.size or not a.size:
        raise ExportError(
            f"{name}: got B {list(b.shape)} and A {list(a.shape)}, expected [o, r] and [r, n], none of them 0"
        )
    if not (np.isfinite(b).all() and np.isfinite(a).all()):
        raise ExportError(f"{name}: B or A holds NaN or infinity, expected finite numbers")
    return b, a


def decompose(b: Doubles, a: Doubles) -> Components:
    """Return the singular components of b[o, r] a[r, n], by QR of both factors and an SVD of the core between them."""
    left, upper = np.linalg.qr(b)
    right, lower = np.linalg.qr(a.T)
    inner_left, strengths, inner_right = np.linalg.svd(upper @ lower.T, full_matrices=False)
    return Components(left=left @ inner_left, strengths=strengths, right=right @ inner_right.T)


def truncate(b: Doubles, a: Doubles, keep: int) -> tuple[Doubles, Doubles, Doubles]:
    """Return the best approximation of b a of a rank of at most `keep`, as U sqrt(S) and sqrt(S) V', and all strengths.

    The factors have `keep` columns and rows; those beyond the rank of b a are 0.
    """
    found = decompose(b, a)
    count = min(keep, len(found.strengths))
    roots = np.sqrt(found.strengths[:count])
    new_b, new_a = np.zeros((len(b), keep)), np.zeros((keep, a.shape[1]))
    new_b[:, :count] = found.left[:, :count] * roots
    new_a[:count] = (found.right[:, :count] * roots).T
    return new_b, new_a, found.strengths
