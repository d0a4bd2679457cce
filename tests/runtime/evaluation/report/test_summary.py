"""Tests of the report on answers and texts, from measurements made by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from enginewright.runtime.evaluation.candidates import Candidate, open_candidates
from enginewright.runtime.evaluation.divergence import Divergence
from enginewright.runtime.evaluation.perplexity import TextScores
from enginewright.runtime.evaluation.report.summary import first_difference, summarise
from enginewright.runtime.evaluation.report.table import render
from enginewright.runtime.evaluation.score import Score, Work
from enginewright.runtime.evaluation.suites import Task
from enginewright.runtime.evaluation.texts import Text

TASK = Task(suite="perplexity", data="book.txt")
DRAWS = (0, 0, 1, 2)  # the first two texts are windows of one


@pytest.fixture
def candidate(asked_engine: Path) -> Candidate:
    return open_candidates([str(asked_engine)], None)[0]


def _score(
    candidate: Candidate,
    nats: float,
    kl: list[list[float]] | None = None,
    first: int = 7,
    draws: tuple[int, ...] = DRAWS,
) -> Score:
    """Four texts of two scored tokens and four bytes each."""
    texts = [Text(tokens=(first, 8, 9), given=1, size=4, draw=draw) for draw in draws]
    text_scores = TextScores(nats=tuple(np.array([nats, nats + 0.5 * draw]) for draw in DRAWS), seconds=2.0)
    divergence = kl and tuple(Divergence(kl=np.array(each), agreed=np.array(each) < 0.5) for each in kl)
    return Score(candidate=candidate, work=Work(texts=tuple(texts)), text_scores=text_scores, divergence=divergence)


def test_nats_bits_and_perplexity(candidate: Candidate) -> None:
    report = summarise(TASK, [_score(candidate, 1.0)], reference=False)
    (engine,) = report.engines
    assert engine.likelihood is not None and report.drawn == {"texts": 3} and report.level is None
    assert engine.likelihood.tokens == 8 and engine.likelihood.nats.value == pytest.approx(9.5 / 8)
    assert engine.likelihood.perplexity.value == pytest.approx(math.exp(9.5 / 8))
    assert engine.likelihood.bits_per_byte.value == pytest.approx(9.5 / math.log(2) / 16)
    low, high = engine.likelihood.nats.low, engine.likelihood.nats.high
    assert low is not None and high is not None and 1.0 <= low < 9.5 / 8 < high <= 1.5
    assert engine.likelihood.perplexity.high == pytest.approx(math.exp(high))
    assert engine.timing.tokens_per_second == 4 * 2 / 2.0 and engine.traffic.context == 1.5
    assert engine.difference is None and engine.agreement is None


def test_windows_of_one_text_are_one_draw(candidate: Candidate) -> None:
    scores = [_score(candidate, 1.0, draws=(0,) * 4), _score(candidate, 1.1, [[0.1, 0.2]] * 4, draws=(0,) * 4)]
    first, second = summarise(TASK, scores, reference=True).engines
    assert first.likelihood is not None and first.likelihood.nats.low is None
    assert second.agreement is not None and second.agreement.mean_kl.low is None
    assert second.difference is not None and not second.difference.differs, "one draw shows nothing"


def test_a_difference_on_the_same_tokens_is_paired(candidate: Candidate) -> None:
    """0.01 nats, far less than texts differ from one another, and shown all the same."""
    scores = [
        _score(candidate, 1.0),
        _score(candidate, 1.01),
        _score(candidate, 1.0),
        _score(candidate, 1.0, first=6),
    ]
    _, worse, equal, other = summarise(TASK, scores, reference=False).engines
    assert worse.difference is not None and worse.difference.differs and worse.difference.measure == "nats"
    assert worse.difference.estimate.value == pytest.approx(0.01)
    assert equal.difference is not None and not equal.difference.differs
    assert other.difference is None, "other tokens are not comparable one by one"


def test_agreement_is_over_tokens_and_its_interval_over_draws(candidate: Candidate) -> None:
    kl = [[0.0, 1.0], [0.0, 0.0], [0.2, 0.2], [0.1, 0.1]]
    scores = [_score(candidate, 1.0), _score(candidate, 1.0, kl)]
    report = summarise(TASK, scores, reference=True)
    agreement = report.engines[1].agreement
    assert agreement is not None and agreement.tokens == 8 and report.engines[0].agreement is None
    assert agreement.mean_kl.value == pytest.approx(1.6 / 8)
    assert agreement.worst_kl.value == pytest.approx(1.0), "5 % of 8 tokens is less than one"
    assert agreement.top1.value == pytest.approx(7 / 8)
    assert agreement.mean_kl.low is not None and agreement.mean_kl.low >= 0.1 - 1e-9
    assert agreement.mean_kl.high is not None and agreement.mean_kl.high <= 0.25 + 1e-9
    assert agreement.answers is None and agreement.never_parts is None


def test_the_table_of_texts(candidate: Candidate) -> None:
    scores = [_score(candidate, 1.0), _score(candidate, 1.01, [[0.1, 0.2]] * 4)]
    lines = render(summarise(TASK, scores, reference=True)).splitlines()
    assert lines[0].startswith("perplexity, book.txt: 3 texts; seed 0")
    assert "bits per byte" in lines[2] and "3.279 [" in lines[3]
    assert "+1.0e-02 [" in lines[7] and "worse" in lines[7] and "1.5e-01 [" in lines[7]


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((1, 2), (1, 2), None),
        ((), (), None),
        ((1, 2), (1, 3), 1),
        ((1, 2), (1, 2, 3), 2),
        ((1,), (2,), 0),
        ((1,), (), 0),
    ],
)
def test_first_difference(ours: tuple[int, ...], theirs: tuple[int, ...], expected: int | None) -> None:
    assert first_difference(ours, theirs) == expected


def test_a_perplexity_beyond_floats_is_a_number(candidate: Candidate) -> None:
    report = summarise(TASK, [_score(candidate, 1000.0)], reference=False)
    assert "Infinity" not in report.to_json() and "NaN" not in report.to_json()
