"""Makes sequences of tokens more or less likely (`sequence_bias` of generation_config.json)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginewright.runtime.decoding.processor_kind import ProcessorKind
from enginewright.runtime.decoding.processor_options import check_ids, read_options
from enginewright.runtime.requests.logits_processor import Floats, Ints, LogitsProcessor, Stateless

NAME = "sequence_bias"


@dataclass(frozen=True, kw_only=True)
class BiasedSequence:
    """A sequence of tokens and the bias of its last one where the others have come."""

    tokens: tuple[int, ...]
    bias: float

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ValueError("tokens: got none, expected at least one")


@dataclass(frozen=True, kw_only=True)
class SequenceBiasOptions:
    """The options. sequences: those with a bias."""

    sequences: tuple[BiasedSequence, ...]


class SequenceBias(Stateless):
    """Adds a sequence's bias to the logit of its last token where the tokens so far end with its others."""

    def __init__(self, sequences: Sequence[BiasedSequence]) -> None:
        self._sequences = [
            (np.array(each.tokens[:-1], np.int64), each.tokens[-1], np.float32(each.bias)) for each in sequences
        ]

    def process(self, logits: Floats, tokens: Ints) -> None:
        """Add the biases; those of one token are summed first."""
        sums: dict[int, np.float32] = {}
        for others, last, bias in self._sequences:
            if not len(others) or np.array_equal(tokens[-len(others) :], others):
                sums[last] = sums.get(last, np.float32(0)) + bias
        for last, bias in sums.items():
            logits[last] += bias


def _open(given: Mapping[str, Any], prompt: Ints, vocab: int) -> LogitsProcessor:
    sequences = read_options(SequenceBiasOptions, NAME, given).sequences
    check_ids(NAME, (token for each in sequences for token in each.tokens), vocab)
    return SequenceBias(sequences)


PROCESSOR = ProcessorKind(name=NAME, order=10, from_options=_open)
