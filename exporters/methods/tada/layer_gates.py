"""Gates: the domain's share of the merged layer, from the probes of all layers that have the same projection."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginewright.runtime.errors import ExportError

Doubles = NDArray[np.float64]
LEAST = 1e-12  # added to a probe, which may be 0
LEAST_SPREAD = 1e-6  # added to the standard deviation
LOWEST = 0.1


def log_ratios(task: ArrayLike, domain: ArrayLike) -> Doubles:
    """Return ln of the domain's probe over the task's, float64 [layers].

    Raises:
        ExportError: the probes are not two lists of one length, or are negative or not finite.
    """
    ours, theirs = np.asarray(task, np.float64), np.asarray(domain, np.float64)
    if ours.ndim != 1 or ours.shape != theirs.shape or not len(ours):
        raise ExportError(f"gates: got probes {list(ours.shape)} and {list(theirs.shape)}, expected [layers], twice")
    if not all(np.isfinite(each).all() and (each >= 0).all() for each in (ours, theirs)):
        raise ExportError(
            "gates: got a probe that is negative or not finite, expected 0 or more; are all inputs finite?"
        )
    return np.asarray(np.log(theirs + LEAST) - np.log(ours + LEAST))


def gates(
    task: ArrayLike, domain: ArrayLike, *, kappa: float = 1.0, shift: float = 0.0, lowest: float = LOWEST
) -> Doubles:
    """Return the domain's share of each layer, float64 [layers]: sigmoid(kappa z + shift), at least `lowest`.

    z is the logarithm of domain over task, less its mean over the layers, in its standard deviations. So the layers are
    compared with each other, and the mean layer has sigmoid(shift).

    task, domain: [layers], the probes of one projection in each layer that has it.
    lowest: of either adapter's share.

    Raises:
        ExportError: the probes are not two lists of one length, or are negative or not finite.
    """
    ratios = log_ratios(task, domain)
    z = (ratios - ratios.mean()) / (ratios.std() + LEAST_SPREAD)
    return np.asarray(np.clip(1 / (1 + np.exp(-(kappa * z + shift))), lowest, 1 - lowest))


def ratio_gates(task: ArrayLike, domain: ArrayLike) -> Doubles:
    """Return domain / (task + domain) of each layer, .5 where both are 0: gates without a calibration over layers."""
    return np.asarray(1 / (1 + np.exp(-log_ratios(task, domain))))


def ramp_gates(layers: ArrayLike, count: int, lowest: float = LOWEST) -> Doubles:
    """Return gates that rise with the layer's number alone, from `lowest` in layer 0 to 1 - `lowest` in the last.

    layers: the numbers of the layers.
    count: of the model's layers; .5 where it has one.
    """
    if count == 1:
        return np.full(np.shape(layers), 0.5)
    return np.asarray(lowest + (1 - 2 * lowest) * np.asarray(layers, np.float64) / (count - 1))


def spearman(values: ArrayLike) -> float | None:
    """Return Spearman's rank correlation of the values with their order; None where all are equal, or fewer than two."""
    found = np.asarray(values, np.float64)
    if len(found) < 2 or found.min() == found.max():
        return None
    _, places, counts = np.unique(found, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return float(np.corrcoef(np.arange(len(found)), ranks)[0, 1])
