"""Other ways to merge two adapters, for comparison; all act on B A, with each adapter's scaling multiplied in.

linear      scale (task + domain), exactly, with the sum of both ranks; PEFT calls it `cat`. PEFT's own `linear` averages B and A
            apart, which is another thing.
svd         the best approximation of that of the common rank; PEFT calls it `svd`.
ties        PEFT's function `ties` on the two matrices B A, then the best approximation of the common rank.
dare-ties   PEFT's function `dare_ties` in the same way: entries are dropped by chance and the others scaled up, then TIES's
            election of signs, without a choice of the largest.
knots-ties  an SVD of [task | domain] gives a basis U that both share; PEFT's `ties` merges their parts S V', of which there are
            as many rows as the rank of [task | domain], then U is put before the result.

Source: TIES, arXiv 2306.01708; DARE, arXiv 2311.03099; KnOTS, arXiv 2410.19735.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import numpy as np
import torch

from enginewright.exporters.methods.tada.components import Doubles, Factors, decompose, read_pair, truncate
from enginewright.exporters.methods.tada.options import MergeOptions
from enginewright.runtime.errors import ExportError

NEGLIGIBLE = 1e-12  # of the largest singular value: rounding of 0
OF_PEFT = ("ties", "dare-ties", "knots-ties")


def check_packages(options: MergeOptions) -> None:
    """Raise ExportError where the scheme needs PEFT and it is not installed."""
    if options.merge in OF_PEFT and importlib.util.find_spec("peft") is None:
        raise ExportError(
            f"--merge {options.merge}: got no Python package 'peft', whose functions it uses; pip install "
            "'enginewright[tune]'"
        )


def merge_baseline(
    task: Factors, domain: Factors, options: MergeOptions, rank: int, seed: int
) -> tuple[Doubles, Doubles, float]:
    """Return B [o, rank], A [rank, n], and the Frobenius norm of what is lost because of the rank.

    task, domain: B and A of each adapter, with its scaling multiplied into B.
    rank: of the result; for linear that of the sum.
    seed: of DARE's choice.
    """
    pairs = read_pair(task, "task"), read_pair(domain, "domain")
    scale = options.number("scale")
    if options.merge in ("linear", "svd"):
        left, right = np.concatenate([scale * b for b, _ in pairs], axis=1), np.concatenate([a for _, a in pairs])
    elif options.merge == "knots-ties":
        left, right = _shared_basis(pairs, scale, options.number("density"))
    else:
        changes = [torch.from_numpy(b @ a).float() for b, a in pairs]
        drop = options.number("drop") if options.merge == "dare-ties" else None
        density = options.number("density") if drop is None else 1 - drop
        merged = _ties(changes, scale, density, None if drop is None else seed)
        left, right = np.eye(len(merged)), merged
    b, a, strengths = truncate(left, right, rank)
    return b, a, float(np.linalg.norm(strengths[rank:]))


def _shared_basis(
    pairs: tuple[tuple[Doubles, Doubles], tuple[Doubles, Doubles]], scale: float, density: float
) -> tuple[Doubles, Doubles]:
    """KnOTS: the basis U [o, k], and the merged parts [k, n] in it."""
    (task_b, task_a), (domain_b, domain_a) = pairs
    columns = task_a.shape[1]
    right = np.zeros((len(task_a) + len(domain_a), 2 * columns))
    right[: len(task_a), :columns], right[len(task_a) :, columns:] = task_a, domain_a
    found = decompose(np.concatenate([task_b, domain_b], axis=1), right)
    least = NEGLIGIBLE * found.strengths[0]
    rows = found.strengths > least  # so that TIES's share is one of what is there
    both = found.strengths[rows, None] * found.right.T[rows]
    parts = torch.from_numpy(np.where(np.abs(both) > least, both, 0)).float()  # a sign of rounding would count
    return found.left[:, rows], _ties([parts[:, :columns], parts[:, columns:]], scale, density, None)


def _ties(changes: list[torch.Tensor], scale: float, density: float, seed: int | None) -> Doubles:
    """PEFT's TIES, times the scale; with a seed its DARE-TIES."""
    from peft.utils import merge_utils

    functions: Any = merge_utils
    weights = torch.full((2,), scale)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="The density")  # of 1: nothing is left out, as asked
        if seed is None:
            merged = functions.ties(changes, weights, density)
        else:
            torch.manual_seed(seed)
            merged = functions.dare_ties(changes, weights, density)
    return np.asarray(merged.double().numpy())
