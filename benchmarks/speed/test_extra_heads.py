"""Tests of the comparison of engines with extra heads: agreement, equal beginnings, and the prompts for chat."""

from __future__ import annotations

import pytest

from benchmarks.chat_prompts import TESTS, training_prompts
from benchmarks.speed.extra_heads import Run, agreement_of, make_parser, pick_questions, shared_beginning
from enginewright.runtime.requests.completion import Completion


def completion(guessed: int, agreed: int) -> Completion:
    return Completion(
        text="",
        token_ids=(1, 2, 3, 4),
        finish_reason="stop",
        prompt_tokens=1,
        logprobs=None,
        seed=0,
        guessed_tokens=guessed,
        agreed_tokens=agreed,
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "share"),
    [((1, 2, 3), (1, 2, 4, 5), 0.5), ((1,), (1, 2), 0.5), ((1, 2), (1,), 1), ((2,), (1,), 0)],
)
def test_shared_beginning(ours: tuple[int, ...], theirs: tuple[int, ...], share: float) -> None:
    assert shared_beginning(ours, theirs) == share


def test_agreement_counts_guesses_not_answers() -> None:
    run = Run(completions=[completion(8, 6), completion(0, 0), completion(2, 0)], seconds=[1.0] * 3, verified=True)
    found = agreement_of(run)
    assert found.value == 0.6 and (found.low, found.high) == (0, 0.75)
    assert agreement_of(Run(completions=[completion(0, 0)], seconds=[1.0], verified=True)).value == 0


def test_chat_prompts_are_not_those_of_training() -> None:
    prompts = training_prompts(500)
    assert len(set(prompts)) == 500 and not set(prompts) & set(TESTS) and len(set(TESTS)) == 48
    assert training_prompts(5, seed=1) != training_prompts(5)
    with pytest.raises(ValueError, match="got 9999, expected 1 to"):
        training_prompts(9999)


def test_questions() -> None:
    parse = make_parser().parse_args
    assert [question.text for question in pick_questions(parse(["plain", "heads", "--chat"]))] == list(TESTS)
    problems = pick_questions(parse(["plain", "heads", "--count", "8"]))
    assert len(problems) == 8 and all(question.answer for question in problems)
