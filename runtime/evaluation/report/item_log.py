"""Every engine's every problem or text as a line of JSON, for whoever wants to look closer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from enginewright.runtime.evaluation.outcome import Score
from enginewright.runtime.evaluation.report.summary import first_difference


def write(outcomes: list[Score], path: Path) -> None:
    """Write the records of all engines; `kl` is from the first of them, where that is the reference."""
    with path.open("w", encoding="utf-8") as f:
        for outcome in outcomes:
            for record in _records(outcome, outcomes[0]):
                f.write(json.dumps(record, ensure_ascii=False) + "\n")


def _records(outcome: Score, first: Score) -> Iterator[dict[str, Any]]:
    rows = _answers(outcome, first) if outcome.answers is not None else _texts(outcome)
    for index, row in enumerate(rows):
        record = {"engine": outcome.contender.name, "index": index, **row}
        if outcome.divergence is not None:
            record["mean_kl"] = float(outcome.divergence[index].kl.mean())
        yield record


def _answers(outcome: Score, first: Score) -> Iterator[dict[str, Any]]:
    assert outcome.answers is not None and first.answers is not None
    replies = zip(outcome.work.questions, outcome.answers.answers, first.answers.answers, strict=True)
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
        if outcome is not first:
            record["parts_after"] = first_difference(other.tokens, answer.tokens)
        yield record


def _texts(outcome: Score) -> Iterator[dict[str, Any]]:
    assert outcome.scores is not None
    for text, nats in zip(outcome.work.texts, outcome.scores.nats, strict=True):
        yield {
            "draw": text.draw,
            "given": text.given,
            "tokens": text.scored,
            "bytes": text.size,
            "nats": float(nats.sum()),
        }
