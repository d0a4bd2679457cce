"""Scores of a text's tokens, next to those of a reference on the same text, and their means with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.evaluation import intervals
from enginewright.runtime.evaluation.intervals import Estimate
from enginewright.runtime.evaluation.softmax import blocks, log_softmax
from enginewright.runtime.evaluation.texts import Text

Doubles: TypeAlias = NDArray[np.float64]
Logits: TypeAlias = NDArray[np.float32]

_PLACES = 1 << 20  # more than there are positions in a text


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """The scores of neighbouring tokens of one text; created by `ScoreAgainst`.

    draw: the independent draw to which they belong.
    begin: the position of the first of them.
    kl: [n], KL divergence from the reference in nats.
    nats, exact_nats: [n], the negative log-likelihood of the text's next token, and that of the reference.
    agreed: [n], whether both find the same token most probable.
    """

    draw: int
    begin: int
    kl: Doubles
    nats: Doubles
    exact_nats: Doubles
    agreed: NDArray[np.bool_]

    def cut(self, block: int) -> list[TokenScores]:
        """The same tokens in pieces that end at multiples of `block` positions, each a draw of its own; 0: whole."""
        if not block:
            return [self]
        edges = range(block - self.begin % block, len(self.kl), block)
        arrays = zip(*(np.split(x, edges) for x in (self.kl, self.nats, self.exact_nats, self.agreed)), strict=True)
        begins = [self.begin, *(self.begin + edge for edge in edges)]
        return [
            TokenScores(
                draw=self.draw * _PLACES + begin, begin=begin, kl=kl, nats=nats, exact_nats=exact, agreed=agreed
            )
            for begin, (kl, nats, exact, agreed) in zip(begins, arrays, strict=True)
        ]


class KeepLogits:
    """Writes a text's logits to an array [tokens, vocabulary] as they come; a TakeLogits."""

    def __init__(self, kept: Logits) -> None:
        self._kept = kept

    def __call__(self, position: int, logits: Logits) -> None:
        self._kept[position : position + len(logits)] = logits


class ScoreAgainst:
    """Compares a text's logits with a reference's as they come; a TakeLogits.

    exact: [tokens, vocabulary], the reference's logits.
    begin: the first position that counts.
    """

    def __init__(self, text: Text, exact: Logits, begin: int = 0) -> None:
        self._text, self._exact = text, exact
        self._begin = max(text.given - 1, begin)
        self._pieces: list[tuple[Doubles, ...]] = []

    def __call__(self, position: int, logits: Logits) -> None:
        begin, end = max(position, self._begin), position + len(logits)
        if begin >= end:
            return
        ours, theirs = logits[begin - position :], self._exact[begin:end]
        targets = np.array(self._text.tokens[begin + 1 : end + 1], np.int64)
        for span in blocks(ours):
            log_q, log_p = log_softmax(ours[span]), log_softmax(theirs[span])
            rows = np.arange(len(log_p)), targets[span]
            kl = np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0)  # only rounding makes it negative
            agreed = log_p.argmax(axis=1) == log_q.argmax(axis=1)
            self._pieces.append((kl, -log_q[rows], -log_p[rows], agreed.astype(np.float64)))

    def scores(self) -> TokenScores:
        """The scores of all tokens that count."""
        kl, nats, exact, agreed = (np.concatenate(each) for each in zip(*self._pieces, strict=True))
        return TokenScores(
            draw=self._text.draw, begin=self._begin, kl=kl, nats=nats, exact_nats=exact, agreed=agreed.astype(np.bool_)
        )


def mean_of(sums: Sequence[float], counts: Sequence[int], seed: int = 0) -> Estimate:
    """The mean over all tokens with a bootstrap interval over draws, of which draw d has counts[d] tokens and sums[d]."""
    return intervals.bootstrap(intervals.ratio(sums, counts), len(counts), seed)


def show(estimate: Estimate, form: str) -> str:
    """The estimate with its interval, if it has one."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{form}}"
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"
