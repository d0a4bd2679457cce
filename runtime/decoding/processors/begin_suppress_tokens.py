"""Rules out some tokens as the first of the output (`begin_suppress_tokens` of generation_config.json)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginewright.runtime.decoding.processor_kind import ProcessorKind
from enginewright.runtime.decoding.processor_options import check_ids, read_options
from enginewright.runtime.requests.logits_processor import Floats, Ints, LogitsProcessor, Stateless

NAME = "begin_suppress_tokens"


@dataclass(frozen=True, kw_only=True)
class BeginSuppressTokensOptions:
    """The options. tokens: ids of the tokens with which the output must not begin."""

    tokens: tuple[int, ...]


class BeginSuppressTokens(Stateless):
    """Sets the logits of `tokens` to -inf for the first token after the prompt."""

    def __init__(self, prompt_tokens: int, tokens: tuple[int, ...]) -> None:
        self._prompt_tokens = prompt_tokens
        self._tokens = np.array(tokens, np.int64)

    def process(self, logits: Floats, tokens: Ints) -> None:
        """Rule the tokens out where the output begins."""
        if len(tokens) == self._prompt_tokens:
            logits[self._tokens] = -np.inf


def _open(given: Mapping[str, Any], prompt: Ints, vocab: int) -> LogitsProcessor:
    options = read_options(BeginSuppressTokensOptions, NAME, given)
    check_ids(NAME, options.tokens, vocab)
    return BeginSuppressTokens(len(prompt), options.tokens)


PROCESSOR = ProcessorKind(name=NAME, order=100, from_options=_open)
