"""Measures how far an engine's predictions are from a reference engine's, token by token over the same texts.

Both engines score one text at a time, and hand over their logits piece by piece. No more than a piece of each engine is in
memory at once, so text and vocabulary may be large.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from enginewright.runtime.evaluation.softmax import Floats, Logits, blocks, log_softmax
from enginewright.runtime.evaluation.texts import Text
from enginewright.runtime.llm import LLM


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The divergence at each scored token of a text; created by `diverge`.

    kl[i]: KL(reference || engine) in nats.
    agreed[i]: whether both engines find the same token most probable.
    """

    kl: Floats
    agreed: NDArray[np.bool_]


def diverge(reference: LLM, engine: LLM, texts: Sequence[Text], label: str) -> list[Divergence]:
    """Return the divergence of each text; label: the progress bar's title."""
    return [_diverge(reference, engine, text) for text in tqdm(texts, desc=label, unit="text", disable=None)]


def _diverge(reference: LLM, engine: LLM, text: Text) -> Divergence:
    kl, agreed = np.empty(text.scored), np.empty(text.scored, np.bool_)
    first = text.given - 1  # the row that predicts the first scored token
    with closing(_pieces(reference, text)) as ours, closing(_pieces(engine, text)) as theirs:
        for position, p, q in _side_by_side(ours, theirs):
            skipped = max(first - position, 0)
            if skipped < len(p):
                begin = position + skipped - first
                span = slice(begin, begin + len(p) - skipped)
                kl[span] = divergence_of(p[skipped:], q[skipped:])
                agreed[span] = p[skipped:].argmax(axis=1) == q[skipped:].argmax(axis=1)
    return Divergence(kl=kl, agreed=agreed)


def divergence_of(p: Logits, q: Logits) -> Floats:
    """Return KL(softmax(p[i]) || softmax(q[i])) in nats, float64 [n]; p, q: logits [n, vocab]."""
    result = np.empty(len(p))
    for span in blocks(p):
        log_p, log_q = log_softmax(p[span]), log_softmax(q[span])
        result[span] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return np.maximum(result, 0.0)  # nothing but rounding makes it negative


def _side_by_side(ours: Iterator[Logits], theirs: Iterator[Logits]) -> Iterator[tuple[int, Logits, Logits]]:
    """Yield (first row, rows, rows) from two streams of the same rows, whose pieces end at different rows."""
    position = 0
    p = q = np.empty((0, 0), np.float32)
    while True:
        p = p if len(p) else next(ours, p)
        q = q if len(q) else next(theirs, q)
        count = min(len(p), len(q))
        if not count:
            return
        yield position, p[:count], q[:count]
        position, p, q = position + count, p[count:], q[count:]


def _pieces(llm: LLM, text: Text) -> Generator[Logits]:
    """Yield the text's logits piece by piece; the engine computes a piece only when it is asked for.

    So two engines take turns on the cores, and neither runs ahead of the other.
    """
    pieces: SimpleQueue[Logits | None] = SimpleQueue()
    asked, stopped = threading.Semaphore(0), threading.Event()
    failures: list[Exception] = []

    def take(_: int, logits: Logits) -> None:
        pieces.put(logits.copy())
        asked.acquire()
        if stopped.is_set():
            raise _StoppedError

    def score() -> None:
        try:
            llm.score([text.tokens[:-1]], [take])
        except Exception as error:  # of any kind: the reader raises it
            failures.append(error)
        pieces.put(None)

    thread = threading.Thread(target=score, name="enginewright-score", daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            yield piece
            asked.release()
        if failures:
            raise failures[0]
    finally:
        stopped.set()
        asked.release()
        thread.join()


class _StoppedError(Exception):
    """Ends the scoring of a text of which the reader wants no more pieces."""
