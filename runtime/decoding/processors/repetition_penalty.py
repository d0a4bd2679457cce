"""Makes the tokens of prompt and output less probable (`Sampling.repetition_penalty`)."""

from __future__ import annotations

import numpy as np

from enginewright.runtime.decoding.processor_kind import ProcessorKind
from enginewright.runtime.requests.logits_processor import Floats, Ints, LogitsProcessor, Stateless
from enginewright.runtime.requests.resolved_sampling import ResolvedSampling


class RepetitionPenalty(Stateless):
    """Divides the positive logits of tokens that have occurred by `penalty`, and multiplies the negative ones by it."""

    def __init__(self, penalty: float) -> None:
        self._penalty = penalty

    def process(self, logits: Floats, tokens: Ints) -> None:
        """Change the logits of the tokens that have occurred; one that occurred twice changes once."""
        values = logits[tokens]  # all are read before any is written
        logits[tokens] = np.where(values > 0, values / self._penalty, values * self._penalty)


def _open(sampling: ResolvedSampling, _: Ints) -> LogitsProcessor | None:
    return RepetitionPenalty(sampling.repetition_penalty) if sampling.repetition_penalty != 1.0 else None


PROCESSOR = ProcessorKind(name="repetition_penalty", order=20, from_sampling=_open)
