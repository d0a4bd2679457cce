"""Rules out some tokens (`suppress_tokens` of generation_config.json)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginewright.runtime.decoding.processor_kind import ProcessorKind
from enginewright.runtime.decoding.processor_options import check_ids, read_options
from enginewright.runtime.requests.logits_processor import Floats, Ints, LogitsProcessor, Stateless

NAME = "suppress_tokens"


@dataclass(frozen=True, kw_only=True)
class SuppressTokensOptions:
    """The options. tokens: ids of the tokens that must not come."""

    tokens: tuple[int, ...]


class SuppressTokens(Stateless):
    """Sets the logits of `tokens` to -inf."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self._tokens = np.array(tokens, np.int64)

    def process(self, logits: Floats, tokens: Ints) -> None:
        """Rule the tokens out."""
        logits[self._tokens] = -np.inf


def _open(given: Mapping[str, Any], prompt: Ints, vocab: int) -> LogitsProcessor:
    options = read_options(SuppressTokensOptions, NAME, given)
    check_ids(NAME, options.tokens, vocab)
    return SuppressTokens(options.tokens)


PROCESSOR = ProcessorKind(name=NAME, order=90, from_options=_open)
