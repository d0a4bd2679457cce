"""Rules that drop improbable tokens before one is drawn, after top_k, top_p and min_p: each says which tokens stay.

A rule is called as rule(weights, value): weights[n] float32, proportional to the probabilities of the tokens that are
left; value: that of the field of Sampling. It returns bool [n], of which at least one is True.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.requests.logits_processor import Floats

Flags: TypeAlias = NDArray[np.bool_]


def typical(weights: Floats, mass: float) -> Flags:
    """Keep the tokens whose surprise, -log p, is nearest to the entropy, until their probabilities reach `mass`.

    Source: Meister et al., "Locally Typical Sampling", 2022.
    """
    probabilities = _probabilities(weights)
    distance = np.abs(_surprise(probabilities) - _entropy(probabilities))
    nearest = np.argsort(distance, kind="stable")
    reached = int(np.searchsorted(np.cumsum(probabilities[nearest]), mass))
    kept: Flags = distance <= distance[nearest[min(reached, len(nearest) - 1)]]
    return kept


def epsilon(weights: Floats, least: float) -> Flags:
    """Keep the tokens of probability `least` or more, and the most probable ones.

    Source: Hewitt et al., "Truncation Sampling as Language Model Desmoothing", 2022, section 4.
    """
    kept: Flags = (_probabilities(weights) >= least) | (weights == weights.max())
    return kept


def eta(weights: Floats, least: float) -> Flags:
    """Keep the tokens of probability min(least, sqrt(least) exp(-entropy)) or more, and the most probable ones.

    Source: Hewitt et al., "Truncation Sampling as Language Model Desmoothing", 2022, section 4.
    """
    entropy = _entropy(_probabilities(weights))
    return epsilon(weights, min(least, math.sqrt(least) * math.exp(-entropy)))


CUTOFFS: dict[str, Callable[[Floats, float], Flags]] = {
    "typical_p": typical,
    "epsilon_cutoff": epsilon,
    "eta_cutoff": eta,
}
"""Field of Sampling -> its rule."""


def _probabilities(weights: Floats) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = weights.astype(np.float64)
    probabilities /= probabilities.sum()
    return probabilities


def _surprise(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return -log p; infinity where p is 0."""
    with np.errstate(divide="ignore"):
        return -np.log(probabilities)


def _entropy(probabilities: NDArray[np.float64]) -> float:
    some = probabilities[probabilities > 0]
    return float((some * _surprise(some)).sum())
