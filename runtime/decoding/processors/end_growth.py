"""Makes an end more likely with every token (`exponential_decay_length_penalty` of generation_config.json)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginewright.runtime.decoding.processor_kind import ProcessorKind
from enginewright.runtime.decoding.processor_options import check_ids, read_options
from enginewright.runtime.requests.logits_processor import Floats, Ints, LogitsProcessor, Stateless

NAME = "end_growth"


@dataclass(frozen=True, kw_only=True)
class EndGrowthOptions:
    """The options.

    start: number of output tokens after which the end tokens' logits grow.
    factor: by which they grow with each further token.
    end_tokens: ids of the tokens that end a text.
    """

    start: int
    factor: float
    end_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"factor: got {self.factor}, expected a number above 0")


class EndGrowth(Stateless):
    """Adds |logit| * (factor ** n - 1) to the end tokens' logits, n tokens after `start`."""

    def __init__(self, start: int, factor: float, end_tokens: tuple[int, ...]) -> None:
        self._start, self._factor = start, factor
        self._end_tokens = np.unique(np.array(end_tokens, np.int64))

    def process(self, logits: Floats, tokens: Ints) -> None:
        """Raise the end tokens' logits; those that are ruled out stay so."""
        further = len(tokens) - self._start
        if further > 0:
            values = logits[self._end_tokens]
            with np.errstate(over="ignore", invalid="ignore"):
                growth = np.float32(min(np.float64(self._factor) ** further - 1.0, _LARGEST))
                raised = values + np.abs(values) * growth
            logits[self._end_tokens] = np.where(np.isfinite(values), np.minimum(raised, _LARGEST), values)


_LARGEST = float(np.finfo(np.float32).max)


def _open(given: Mapping[str, Any], prompt: Ints, vocab: int) -> LogitsProcessor:
    options = read_options(EndGrowthOptions, NAME, given)
    check_ids(NAME, options.end_tokens, vocab)
    return EndGrowth(options.start + len(prompt), options.factor, options.end_tokens)


PROCESSOR = ProcessorKind(name=NAME, order=80, from_options=_open)
