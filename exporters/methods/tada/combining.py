"""Merges the factors that two adapters have for one layer: conflicting components go, the others are summed by the gate."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from enginewright.exporters.methods.tada.components import Components, Doubles, Factors, decompose, read_pair, truncate
from enginewright.runtime.errors import ExportError

EQUAL = 1e-9  # relative difference below which two strengths count as equal


class MergeInfo(TypedDict):
    """The account of one merge.

    kept_task, kept_domain: bool [k], which components of each adapter are in the sum, from the strongest to the weakest.
    cosines: float64 [k_task, k_domain], c of each pair of components, in [-1, 1].
    strengths_task, strengths_domain: float64 [k], singular values of each adapter, without the gate.
    tail: the Frobenius norm of what is lost because the result has no more than its rank.
    """

    kept_task: NDArray[np.bool_]
    kept_domain: NDArray[np.bool_]
    cosines: Doubles
    strengths_task: Doubles
    strengths_domain: Doubles
    tail: float


def merge(
    task: Factors, domain: Factors, gate: float, theta: float = 0.2, *, scale: float = 1.0, rank: int | None = None
) -> tuple[Doubles, Doubles, MergeInfo]:
    """Return the factors B [o, r] and A [r, n] of the merged layer, and an account.

    B A is the best approximation of rank r of scale * ((1 - gate) * task + gate * domain), each as the sum of those of its
    singular components that are kept. A pair of components conflicts where c = (u_t . u_d) (v_t . v_d) < -theta; the one
    that is weaker after the gate goes, the domain's if both are equal. All pairs are judged on the full sets at once.

    task, domain: B and A of each adapter, with its scaling multiplied into B.
    gate: the domain's share, 0 to 1.
    theta: 0 to 1; from 1 on, no pair conflicts.
    rank: r; None: the larger one of the two adapters.

    Raises:
        ExportError: shapes do not fit, numbers are not finite, or the gate or theta is out of range.
    """
    (task_b, task_a), (domain_b, domain_a) = read_pair(task, "task"), read_pair(domain, "domain")
    if task_b.shape[0] != domain_b.shape[0] or task_a.shape[1] != domain_a.shape[1]:
        raise ExportError(
            f"domain: got a change of {[len(domain_b), domain_a.shape[1]]}, expected {[len(task_b), task_a.shape[1]]} as the "
            "task's; both adapters are to be of one layer"
        )
    if not 0 <= gate <= 1 or not theta >= 0:
        raise ExportError(f"merge: got a gate of {gate} and theta {theta}, expected 0 to 1, and 0 or more")
    parts = decompose(task_b, task_a), decompose(domain_b, domain_a)
    shares = 1 - gate, gate
    cosines = (parts[0].left.T @ parts[1].left) * (parts[0].right.T @ parts[1].right)
    kept = find_kept(cosines, shares[0] * parts[0].strengths, shares[1] * parts[1].strengths, theta)
    left, right = stack(parts, kept, (scale * shares[0], scale * shares[1]))
    keep = max(task_b.shape[1], domain_b.shape[1]) if rank is None else rank
    b, a, strengths = truncate(left, right, keep)
    return (
        b,
        a,
        MergeInfo(
            kept_task=kept[0],
            kept_domain=kept[1],
            cosines=cosines,
            strengths_task=parts[0].strengths,
            strengths_domain=parts[1].strengths,
            tail=float(np.linalg.norm(strengths[keep:])),
        ),
    )


def find_kept(
    cosines: Doubles, task: Doubles, domain: Doubles, theta: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which components of task and domain are the stronger ones in all of their conflicts.

    cosines: [i, j], c of each pair; it conflicts below -theta.
    task, domain: [i] and [j], strengths after the gate.
    """
    conflicts = cosines < -theta
    ours, theirs = task[:, None], domain[None, :]
    task_goes = ours < theirs - EQUAL * np.maximum(ours, theirs)
    lost = (conflicts & task_goes).any(axis=1), (conflicts & ~task_goes).any(axis=0)
    return np.logical_not(lost[0]), np.logical_not(lost[1])


def stack(
    parts: tuple[Components, Components],
    kept: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    shares: tuple[float, float],
) -> tuple[Doubles, Doubles]:
    """Return left [o, k] and right [k, n], whose product is the sum of the components that are kept, times the shares."""
    left = [part.left * (share * part.strengths * own) for part, own, share in zip(parts, kept, shares, strict=True)]
    return np.concatenate(left, axis=1), np.concatenate([part.right for part in parts], axis=1).T
