"""Sums up measurements as a report: estimates with intervals, and the differences that the intervals confirm."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from enginewright.runtime.evaluation import intervals
from enginewright.runtime.evaluation.answers import Answers
from enginewright.runtime.evaluation.divergence import Divergence
from enginewright.runtime.evaluation.intervals import bootstrap, ratio, wilson, worst_mean
from enginewright.runtime.evaluation.report.engine_report import (
    Accuracy,
    Agreement,
    Difference,
    EngineReport,
    Likelihood,
    Report,
    Timing,
)
from enginewright.runtime.evaluation.report.memory_traffic import estimate_traffic
from enginewright.runtime.evaluation.score import Score
from enginewright.runtime.evaluation.suites import Task
from enginewright.runtime.evaluation.texts import Text


def summarise(task: Task, scores: Sequence[Score], *, reference: bool) -> Report:
    """Return the report; differences are from the first engine, which is the reference if there is one."""
    first = scores[0]
    return Report(
        suite=task.suite,
        level=None if task.data else task.level,
        seed=task.seed,
        data=task.data,
        window=task.window,
        drawn=_drawn(first),
        reference=first.candidate.name if reference else None,
        engines=tuple(_summarise(task, score, first) for score in scores),
    )


def _drawn(score: Score) -> dict[str, int]:
    kinds = Counter(question.problem.kind for question in score.work.questions)
    return dict(kinds) or {"texts": len({text.draw for text in score.work.texts})}


def _summarise(task: Task, score: Score, first: Score) -> EngineReport:
    manifest = score.candidate.manifest
    cost = estimate_traffic(manifest, score.contexts)
    return EngineReport(
        name=score.candidate.name,
        path=str(score.candidate.root),
        weights=manifest.weights,
        kv_bits=manifest.cache.kv_bits,
        applied=manifest.applied,
        traffic=cost,
        bytes_per_token=cost.total,
        accuracy=_accuracy(score, score.answers) if score.answers else None,
        likelihood=None if score.text_scores is None else _likelihood(score, task.seed),
        agreement=None if score.divergence is None else _agreement(score, first, task.seed),
        difference=None if score is first else _difference(score, first, task.seed),
        timing=Timing(seconds=score.seconds, tokens_per_second=score.tokens / score.seconds),
    )


def _accuracy(score: Score, answers: Answers) -> Accuracy:
    kinds: dict[str, list[bool]] = {}
    for question, answer in zip(score.work.questions, answers.answers, strict=True):
        kinds.setdefault(question.problem.kind, []).append(answer.correct)
    right = [answer.correct for answer in answers.answers]
    return Accuracy(
        overall=wilson(sum(right), len(right)),
        kinds={kind: wilson(sum(each), len(each)) for kind, each in kinds.items()},
        tokens_generated=answers.tokens,
        finish_reasons=dict(sorted(Counter(answer.finish_reason for answer in answers.answers).items())),
        guessed=sum(answer.guessed for answer in answers.answers),
        agreed=sum(answer.agreed for answer in answers.answers),
    )


def _likelihood(score: Score, seed: int) -> Likelihood:
    nats, tokens, sizes = _sums(score)
    per_token = bootstrap(ratio(nats, tokens), len(nats), seed)
    per_byte = bootstrap(ratio([each / math.log(2) for each in nats], sizes), len(nats), seed)
    return Likelihood(
        tokens=int(sum(tokens)), nats=per_token, perplexity=per_token.map(_exponential), bits_per_byte=per_byte
    )


def _sums(score: Score) -> tuple[list[float], list[float], list[float]]:
    """Return the nats, the tokens and the bytes of each draw."""
    assert score.text_scores is not None
    sums: dict[int, list[float]] = {}
    for text, each in zip(score.work.texts, score.text_scores.nats, strict=True):
        own = sums.setdefault(text.draw, [0.0, 0.0, 0.0])
        for place, amount in enumerate((float(each.sum()), text.scored, text.size)):
            own[place] += amount
    nats, tokens, sizes = zip(*sums.values(), strict=True)
    return list(nats), list(tokens), list(sizes)


def _agreement(score: Score, first: Score, seed: int) -> Agreement:
    assert score.divergence is not None
    draws = [text.draw for text in first.work.texts] or list(range(len(score.divergence)))
    kl, hits = _by_draw(score.divergence, draws)
    tokens = [len(values) for values in kl]
    parted, answers = [], None
    if score.answers is not None and first.answers is not None:
        pairs = list(zip(first.answers.answers, score.answers.answers, strict=True))
        parted = [first_difference(ours.tokens, theirs.tokens) for ours, theirs in pairs]
        answers = wilson(sum(ours.final == theirs.final for ours, theirs in pairs), len(pairs))
    differing = [position for position in parted if position is not None]
    return Agreement(
        tokens=sum(tokens),
        mean_kl=bootstrap(ratio([float(values.sum()) for values in kl], tokens), len(kl), seed),
        worst_kl=bootstrap(worst_mean(kl), len(kl), seed),
        top1=intervals.share_of_tokens(hits, tokens, seed),
        answers=answers,
        never_parts=wilson(len(parted) - len(differing), len(parted)) if parted else None,
        parts_after=float(np.median(differing)) if differing else None,
    )


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Return the number of equal tokens at the beginning; None where the sequences are the same to the end."""
    if tuple(ours) == tuple(theirs):
        return None
    pairs = zip(ours, theirs, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def _by_draw(divergences: Sequence[Divergence], draws: Sequence[int]) -> tuple[list[intervals.Floats], list[int]]:
    """Return the KL of each draw's tokens, and how many of its tokens agree."""
    kl: dict[int, list[intervals.Floats]] = {}
    hits: Counter[int] = Counter()
    for draw, divergence in zip(draws, divergences, strict=True):
        kl.setdefault(draw, []).append(divergence.kl)
        hits[draw] += int(divergence.agreed.sum())
    return [np.concatenate(parts) for parts in kl.values()], [hits[draw] for draw in kl]


def _difference(score: Score, first: Score, seed: int) -> Difference | None:
    """Return the difference in accuracy or in nats per token; None where the engines scored different tokens."""
    mcnemar = None
    if score.answers is not None and first.answers is not None:
        pairs = [(a.correct, b.correct) for a, b in zip(score.answers.answers, first.answers.answers, strict=True)]
        measure, estimate, mcnemar = "accuracy", intervals.paired_difference(pairs), intervals.mcnemar(pairs)
    elif _tokens(score.work.texts) == _tokens(first.work.texts):
        ours, theirs = _sums(score), _sums(first)
        statistic = intervals.difference(ratio(*ours[:2]), ratio(*theirs[:2]))
        measure, estimate = "nats", bootstrap(statistic, len(ours[0]), seed)
    else:
        return None
    return Difference(
        against=first.candidate.name,
        measure=measure,
        estimate=estimate,
        differs=estimate.excludes_zero,
        mcnemar=mcnemar,
    )


def _tokens(texts: Sequence[Text]) -> list[tuple[int, ...]]:
    return [text.tokens for text in texts]


def _exponential(nats: float) -> float:
    return math.exp(min(nats, 700.0))  # beyond this, the result does not fit into a float
