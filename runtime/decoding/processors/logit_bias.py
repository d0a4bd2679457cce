"""Adds fixed numbers to the logits of some tokens (`Sampling.logit_bias`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from enginewright.runtime.decoding.processor_kind import ProcessorKind
from enginewright.runtime.requests.logits_processor import Floats, Ints, LogitsProcessor, Stateless
from enginewright.runtime.requests.resolved_sampling import ResolvedSampling


class LogitBias(Stateless):
    """Adds biases[token] to the logit of each of these tokens."""

    def __init__(self, biases: Mapping[int, float]) -> None:
        self._tokens = np.fromiter(biases, np.int64, len(biases))
        self._biases = np.fromiter(biases.values(), np.float32, len(biases))

    def process(self, logits: Floats, tokens: Ints) -> None:
        """Add the biases."""
        logits[self._tokens] += self._biases


def _open(sampling: ResolvedSampling, _: Ints) -> LogitsProcessor | None:
    return LogitBias(sampling.logit_bias) if sampling.logit_bias else None


PROCESSOR = ProcessorKind(name="logit_bias", order=0, from_sampling=_open)
