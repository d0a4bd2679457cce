"""Lowers the logits of tokens by their occurrences in the output (`Sampling.presence_penalty`, `frequency_penalty`)."""

from __future__ import annotations

import numpy as np

from enginewright.runtime.decoding.processor_kind import ProcessorKind
from enginewright.runtime.requests.logits_processor import Floats, Ints, LogitsProcessor, Stateless
from enginewright.runtime.requests.resolved_sampling import ResolvedSampling


class OccurrencePenalty(Stateless):
    """Lowers the logit of each token of the output by presence + frequency * its count; the prompt does not count."""

    def __init__(self, prompt_tokens: int, presence: float, frequency: float) -> None:
        self._prompt_tokens, self._presence, self._frequency = prompt_tokens, presence, frequency

    def process(self, logits: Floats, tokens: Ints) -> None:
        """Lower the logits of the output's tokens."""
        seen, counts = np.unique(tokens[self._prompt_tokens :], return_counts=True)
        logits[seen] -= (self._presence + self._frequency * counts).astype(np.float32)


def _open(sampling: ResolvedSampling, prompt: Ints) -> LogitsProcessor | None:
    if not sampling.presence_penalty and not sampling.frequency_penalty:
        return None
    return OccurrencePenalty(len(prompt), sampling.presence_penalty, sampling.frequency_penalty)


PROCESSOR = ProcessorKind(name="occurrence_penalty", order=30, from_sampling=_open)
