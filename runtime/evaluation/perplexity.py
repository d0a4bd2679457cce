"""Scores texts: the negative log-likelihood of each token in nats, teacher-forced, all texts in flight together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Never

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from enginewright.runtime.evaluation.intervals import Floats
from enginewright.runtime.evaluation.softmax import blocks, log_softmax
from enginewright.runtime.evaluation.texts import Text
from enginewright.runtime.llm import LLM
from enginewright.runtime.requests.request import TakeLogits


@dataclass(frozen=True, kw_only=True)
class TextScores:
    """The scores of an engine's texts; created by `score_texts`.

    nats[i]: the negative log-likelihood of each scored token of text i, in nats.
    seconds: time that all texts took together.
    """

    nats: tuple[Floats, ...]
    seconds: float


def score_texts(llm: LLM, texts: Sequence[Text], label: str) -> TextScores:
    """Return the negative log-likelihoods of the texts' scored tokens; label: the progress bar's title."""
    nats = [np.empty(text.scored) for text in texts]
    start = time.perf_counter()
    bar = tqdm(total=sum(len(t.tokens) - 1 for t in texts), desc=label, unit="token", disable=None)
    with bar:
        takes = [_taker(text, result, bar) for text, result in zip(texts, nats, strict=True)]
        llm.score([text.tokens[:-1] for text in texts], takes)
    return TextScores(nats=tuple(nats), seconds=time.perf_counter() - start)


def _taker(text: Text, nats: Floats, bar: tqdm[Never]) -> TakeLogits:
    """Return a function that turns a text's logits, piece by piece, into its nats."""
    targets = np.array(text.tokens[text.given :])

    def take(position: int, logits: NDArray[np.float32]) -> None:
        bar.update(len(logits))
        first = text.given - 1  # the row that predicts the first scored token
        begin = max(position, first)
        rows = logits[begin - position :]
        if len(rows):
            span = slice(begin - first, begin - first + len(rows))
            nats[span] = negative_log_likelihood(rows, targets[span])

    return take


def negative_log_likelihood(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> Floats:
    """Return -log softmax(logits[i])[targets[i]], float64 [n]; logits[n, vocab]."""
    result = np.empty(len(logits))
    for span in blocks(logits):
        chosen = targets[span]
        result[span] = -log_softmax(logits[span])[np.arange(len(chosen)), chosen]
    return result
