"""Writes the result of every item, a problem or a text, as a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from enginewright.runtime.evaluation.report.summary import first_difference
from enginewright.runtime.evaluation.score import Score


def write(scores: list[Score], path: Path) -> None:
    """Write a line for each item of each engine; `mean_kl` is the divergence from the reference, the first engine."""
    with path.open("w", encoding="utf-8") as f:
        for score in scores:
            for record in _records(score, scores[0]):
                f.write(json.dumps(record, ensure_ascii=False) + "\n")


def _records(score: Score, first: Score) -> Iterator[dict[str, Any]]:
    rows = _answers(score, first) if score.answers is not None else _texts(score)
    for index, row in enumerate(rows):
        record = {"engine": score.candidate.name, "index": index, **row}
        if score.divergence is not None:
            record["mean_kl"] = float(score.divergence[index].kl.mean())
        yield record


def _answers(score: Score, first: Score) -> Iterator[dict[str, Any]]:
    assert score.answers is not None and first.answers is not None
    replies = zip(score.work.questions, score.answers.answers, first.answers.answers, strict=True)
    for question, answer, other in replies:
        record = {
            "kind": question.problem.kind,
            "level": question.problem.level,
            "question": question.problem.question,
            "solution": question.problem.solution,
            "reply": answer.reply,
            "answer": answer.final,
            "correct": answer.correct,
            "tokens": len(answer.tokens),
            "finish_reason": answer.finish_reason,
        }
        if score is not first:
            record["parts_after"] = first_difference(other.tokens, answer.tokens)
        yield record


def _texts(score: Score) -> Iterator[dict[str, Any]]:
    assert score.text_scores is not None
    for text, nats in zip(score.work.texts, score.text_scores.nats, strict=True):
        yield {
            "draw": text.draw,
            "given": text.given,
            "tokens": text.scored,
            "bytes": text.size,
            "nats": float(nats.sum()),
        }
