"""Keeps a request from ending early (`min_new_tokens` and `min_length` of generation_config.json)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginewright.runtime.decoding.processor_kind import ProcessorKind
from enginewright.runtime.decoding.processor_options import check_ids, read_options
from enginewright.runtime.requests.logits_processor import Floats, Ints, LogitsProcessor, Stateless

NAME = "min_tokens"


@dataclass(frozen=True, kw_only=True)
class MinTokensOptions:
    """The options.

    count: the least number of tokens before an end.
    end_tokens: ids of the tokens that end a text.
    of_prompt: whether the tokens of the prompt count.
    """

    count: int
    end_tokens: tuple[int, ...]
    of_prompt: bool = False

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count: got {self.count}, expected a whole number from 0 up")


class MinTokens(Stateless):
    """Rules out the end tokens until there are `length` tokens, those of the prompt included."""

    def __init__(self, length: int, end_tokens: tuple[int, ...]) -> None:
        self._length = length
        self._end_tokens = np.array(end_tokens, np.int64)

    def process(self, logits: Floats, tokens: Ints) -> None:
        """Rule the end tokens out."""
        if len(tokens) < self._length:
            logits[self._end_tokens] = -np.inf


def _open(given: Mapping[str, Any], prompt: Ints, vocab: int) -> LogitsProcessor:
    options = read_options(MinTokensOptions, NAME, given)
    check_ids(NAME, options.end_tokens, vocab)
    return MinTokens(options.count + (0 if options.of_prompt else len(prompt)), options.end_tokens)


PROCESSOR = ProcessorKind(name=NAME, order=60, from_options=_open)
