"""Tests of the comparison with llama.cpp's answers, with logits written by hand in place of the two programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import llama_cpp_answers
from benchmarks.peers.answer_prompts import BEGINNINGS, QUESTIONS
from benchmarks.peers.greedy_answers import (
    TOP,
    GreedyAnswers,
    Tokens,
    answer_greedily,
    most_probable,
    read_prompts,
    write_prompts,
)
from benchmarks.peers.llama_cpp_answers import PEER, Parting, find_partings, judged_side, partings_figures, side_figures

VOCABULARY = 64
FIRST, SECOND, THIRD = 7, 5, 9


def logits_with(**changes: float) -> np.ndarray:
    """Logits of which three are above 0, and may be changed."""
    logits = np.full(VOCABULARY, -1.0, np.float32)
    logits[[FIRST, SECOND, THIRD]] = [
        changes.get(name, value) for name, value in (("first", 3), ("second", 2), ("third", 1))
    ]
    return logits


def answers_from(*steps: np.ndarray) -> GreedyAnswers:
    """The answers to one prompt, from the logits of each step."""
    left = iter(steps)
    return answer_greedily([np.array([1], np.int32)], len(steps), lambda tokens: next(left), lambda: None)


def test_the_most_probable_tokens_are_in_order_and_the_lowest_id_wins() -> None:
    logits = np.zeros(VOCABULARY, np.float32)
    logits[[40, 3, 20]] = [1, 1, 2]
    ids, values = most_probable(logits)
    assert ids[:3].tolist() == [20, 3, 40] and len(ids) == TOP
    assert values.tolist() == [2, 1, 1, *[0] * (TOP - 3)]


def test_answers_are_fed_back_and_every_prompt_begins_anew(tmp_path: Path) -> None:
    seen: list[list[int]] = []

    def feed(tokens: Tokens) -> np.ndarray:
        seen[-1].extend(tokens.tolist())
        return np.eye(VOCABULARY, dtype=np.float32)[(tokens[-1] + 1) % VOCABULARY]

    prompts = [[1, 2], [10]]
    write_prompts(tmp_path / "prompts.npz", prompts)
    found = answer_greedily(read_prompts(tmp_path / "prompts.npz"), 3, feed, lambda: seen.append([]))
    assert seen == [[1, 2, 3, 4], [10, 11, 12]]
    assert found.tokens.tolist() == [[3, 4, 5], [11, 12, 13]]
    found.write(tmp_path / "answers.npz")
    read = GreedyAnswers.read(tmp_path / "answers.npz")
    assert all(
        np.array_equal(getattr(read, name), getattr(found, name)) for name in ("tokens", "top_ids", "top_logits")
    )
    assert found.gap(0, 0, 3, int(found.top_ids[0, 0, 1])) == 1
    assert np.isnan(found.gap(0, 0, 3, VOCABULARY - 1))


def test_a_side_is_judged_by_the_exact_model() -> None:
    """One step rounds a little and keeps the token, another changes it."""
    side = answers_from(logits_with(first=3.25), logits_with(second=3.125))
    exact = np.stack([logits_with(), logits_with(second=2.875)])
    judged = judged_side("engine", side, np.array([[FIRST, FIRST]], np.int32), [exact])
    assert side.tokens.tolist() == [[FIRST, SECOND]]
    assert judged.given_up.tolist() == [[0, 0.125]]
    assert judged.rounding.tolist() == [[0.25, -0.25]] and judged.rounding_size == 0.25
    assert judged.ahead.tolist() == [[0, -0.125]]
    figures = {figure.name: figure.value for figure in side_figures(judged)}
    assert figures == {
        "tokens that are the exact model's first choice": 50,
        "most given up": 0.125,
        "rounding": 0.25,
    }


def test_partings_are_found_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    """llama.cpp goes another way at the second step; what comes after it is not compared."""
    ours = answers_from(logits_with(), logits_with(second=2.875), logits_with())
    theirs = answers_from(logits_with(first=3.25), logits_with(second=3.125), logits_with(third=9))
    exact = np.stack([logits_with(), logits_with(second=2.875), logits_with()])
    engine = judged_side("engine", ours, theirs.tokens, [exact])
    peer = judged_side(PEER, theirs, theirs.tokens, [exact])
    (parting,) = find_partings(engine, peer)
    assert (parting.prompt, parting.step, parting.tokens) == (0, 1, (FIRST, SECOND))
    assert parting.gaps == (0.125, -0.125, 0.125) and parting.is_tie
    figures = partings_figures(engine, peer, {FIRST: "'yes'", SECOND: "'no'"})  # type: ignore[arg-type]
    assert [figure.value for figure in figures] == [0, 1, 1, 1, 1, 0.125]
    assert "'yes' or 'no'; gap in logits: exact +0.1250, engine +0.1250, llama.cpp -0.1250" in capsys.readouterr().out


def test_equal_answers_do_not_part() -> None:
    side = answers_from(logits_with(), logits_with())
    judged = judged_side("engine", side, side.tokens, [np.stack([logits_with()] * 2)])
    assert find_partings(judged, judged) == []


@pytest.mark.parametrize(("gap", "is_tie"), [(0.3, True), (-0.3, True), (0.31, False)])
def test_a_tie_is_within_three_times_the_rounding(gap: float, is_tie: bool) -> None:
    parting = Parting(prompt=0, step=0, tokens=(1, 2), gaps=(1.0, -1.0, gap), rounding=0.1)
    assert parting.is_tie is is_tie


def test_every_question_has_a_beginning() -> None:
    assert len(QUESTIONS) == len(BEGINNINGS) == len({*QUESTIONS, *BEGINNINGS}) / 2 == 20


@pytest.mark.parametrize("wrong", [["--prompts", "21"], ["--prompts", "0"], ["--new-tokens", "0"]])
def test_numbers_out_of_range_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        llama_cpp_answers.main(["--engine", "none", "--gguf", "none", *wrong])
    assert f"{wrong[0]}: got {wrong[1]}, expected 1 to" in capsys.readouterr().err
