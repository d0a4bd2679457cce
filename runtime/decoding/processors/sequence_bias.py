"""Makes sequences of tokens more or less likely (`sequence_bias` of generation_config.json)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginewright.runtime.decoding.processor_kind import ProcessorKind
from enginewright.runtime.decoding.processor_options import check_ids, read_options
from enginewright.runtime.decoding.token_sequences import TokenSequences, check_count
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

    def __post_init__(self) -> None:
        check_count([each.tokens for each in self.sequences], "sequences")


class SequenceBias(Stateless):
    """Adds a sequence's bias to the logit of its last token where the tokens so far end with its others."""

    def __init__(self, sequences: Sequence[BiasedSequence]) -> None:
        singles: dict[int, np.float32] = {}
        for each in sequences:
            if len(each.tokens) == 1:
                singles[each.tokens[0]] = singles.get(each.tokens[0], np.float32(0)) + np.float32(each.bias)
        self._single_biases, self._singles = singles, np.array([*singles], np.int64)
        self._biases = np.array([*singles.values()], np.float32)
        longer = [each for each in sequences if len(each.tokens) > 1]
        self._longer = TokenSequences(each.tokens for each in longer)
        self._ends = [(each.tokens[-1], np.float32(each.bias)) for each in longer]

    def process(self, logits: Floats, tokens: Ints) -> None:
        """Add the biases; those of one token are summed first."""
        sums: dict[int, np.float32] = {}
        for place in self._longer.ending(tokens):
            last, bias = self._ends[place]
            sums[last] = sums.get(last, self._single_biases.get(last, np.float32(0))) + bias
        before = {last: logits[last] for last in sums}
        logits[self._singles] += self._biases
        for last, bias in sums.items():
            logits[last] = before[last] + bias


def _open(given: Mapping[str, Any], prompt: Ints, vocab: int) -> LogitsProcessor:
    sequences = read_options(SequenceBiasOptions, NAME, given).sequences
    check_ids(NAME, (token for each in sequences for token in each.tokens), vocab)
    return SequenceBias(sequences)


PROCESSOR = ProcessorKind(name=NAME, order=10, from_options=_open)
