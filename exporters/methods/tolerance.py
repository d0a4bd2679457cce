"""The differences from its PyTorch model with which an engine still counts as the same model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from enginewright.runtime.artifact.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The largest differences that `check`, and the trial of a new engine, allow.

    error: of a logit, relative to the largest logit.
    kl: the mean over tokens of KL(model || engine), in nats.
    greedy: whether greedy tokens have to be the model's, but for ties.
    """

    error: float
    kl: float
    greedy: bool


# Cached halves carry 2^-11 of relative error through every layer; codes of few bits change the model on purpose, so only
# their KL is bounded, by what would show in answers.
EXACT = Tolerance(error=2e-4, kl=1e-6, greedy=True)
HALF_CACHE = Tolerance(error=5e-3, kl=1e-4, greedy=True)
FINE_CODES = Tolerance(error=1.0, kl=1e-2, greedy=False)
COARSE_CODES = Tolerance(error=1.0, kl=0.5, greedy=False)
OF_TYPES = {  # 11 and 8 bits of precision in every product
    "float16": Tolerance(error=5e-2, kl=1e-3, greedy=True),
    "bfloat16": Tolerance(error=0.4, kl=5e-2, greedy=False),
}


def tolerance_of_numbers(manifest: Manifest) -> Tolerance:
    """The tolerance that the storage of weights and cache asks for; methods then loosen it by their hook."""
    if "max_kl" in manifest.weights:  # of a stored form that changes weights
        return replace(COARSE_CODES, kl=float(manifest.weights["max_kl"]))
    if manifest.dtype in OF_TYPES:
        return OF_TYPES[manifest.dtype]
    return EXACT if manifest.cache.kv_bits == 32 else HALF_CACHE
