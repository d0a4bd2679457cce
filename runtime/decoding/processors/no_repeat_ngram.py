"""Keeps any n tokens in a row from coming twice (`no_repeat_ngram_size` of generation_config.json)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginewright.runtime.decoding.processor_kind import ProcessorKind
from enginewright.runtime.decoding.processor_options import read_options
from enginewright.runtime.requests.logits_processor import Floats, Ints, LogitsProcessor, Stateless

NAME = "no_repeat_ngram"


@dataclass(frozen=True, kw_only=True)
class NoRepeatNgramOptions:
    """The options. size: the n of the n tokens."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: got {self.size}, expected a whole number from 1 up")


class NoRepeatNgram(Stateless):
    """Rules out each token that has already followed the last size - 1 tokens, in the prompt or in the output."""

    def __init__(self, size: int) -> None:
        self._size = size

    def process(self, logits: Floats, tokens: Ints) -> None:
        """Rule the tokens out."""
        begins = len(tokens) - self._size + 1  # places where `size` tokens in a row begin
        if begins < 1:
            return
        same = np.ones(begins, np.bool_)
        for i in range(self._size - 1):
            same &= tokens[i : i + begins] == tokens[begins + i]
        logits[tokens[self._size - 1 :][same]] = -np.inf


def _open(given: Mapping[str, Any], prompt: Ints, vocab: int) -> LogitsProcessor:
    return NoRepeatNgram(read_options(NoRepeatNgramOptions, NAME, given).size)


PROCESSOR = ProcessorKind(name=NAME, order=40, from_options=_open)
