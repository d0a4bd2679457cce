"""Keeps sequences of tokens from coming (`bad_words_ids` of generation_config.json)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginewright.runtime.decoding.processor_kind import ProcessorKind
from enginewright.runtime.decoding.processor_options import check_ids, read_options
from enginewright.runtime.decoding.token_sequences import TokenSequences, check_count
from enginewright.runtime.requests.logits_processor import Floats, Ints, LogitsProcessor, Stateless

NAME = "bad_words"


@dataclass(frozen=True, kw_only=True)
class BadWordsOptions:
    """The options. words: the token ids of each word."""

    words: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not all(self.words):
            raise ValueError("words: got a word without tokens, expected at least one token in each")
        check_count(self.words, "words")


class BadWords(Stateless):
    """Rules out the last token of a word where the tokens so far end with its others."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self._never = np.array([word[0] for word in words if len(word) == 1], np.int64)
        longer = [word for word in words if len(word) > 1]
        self._longer, self._last = TokenSequences(longer), np.array([word[-1] for word in longer], np.int64)

    def process(self, logits: Floats, tokens: Ints) -> None:
        """Rule the tokens out."""
        logits[self._never] = -np.inf
        logits[self._last[self._longer.ending(tokens)]] = -np.inf


def _open(given: Mapping[str, Any], prompt: Ints, vocab: int) -> LogitsProcessor:
    words = read_options(BadWordsOptions, NAME, given).words
    check_ids(NAME, (token for word in words for token in word), vocab)
    return BadWords(words)


PROCESSOR = ProcessorKind(name=NAME, order=50, from_options=_open)
