"""Tests of LLM.score: teacher-forced logits, passed to the caller in pieces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from enginewright.runtime.errors import RequestError
from enginewright.runtime.llm import LLM
from enginewright.runtime.requests.sampling import Sampling
from tests.support.runtime.toy_model import WINDOWS, reference_logits
from tests.support.runtime.toy_session import VOCAB

Make = Callable[..., LLM]


class Collector:
    """Copies the logits that it receives."""

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.pieces: list[np.ndarray] = []

    def __call__(self, position: int, logits: np.ndarray) -> None:
        self.positions.append(position)
        self.pieces.append(logits.copy())


def _texts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, length).tolist() for length in lengths]


def _check(texts: list[list[int]], takes: list[Collector], windows: tuple[int, ...] = WINDOWS) -> None:
    """Check that every position comes once, in order, with the right logits."""
    for tokens, take in zip(texts, takes, strict=True):
        ends = np.cumsum([len(piece) for piece in take.pieces])
        assert take.positions == [0, *ends[:-1].tolist()]
        expected = [reference_logits(tokens[: i + 1], windows) for i in range(len(tokens))]
        np.testing.assert_array_equal(np.concatenate(take.pieces), expected)


def test_texts_in_flight_together_each_get_their_own_logits(make_toy: Make) -> None:
    llm, texts = make_toy(eos=()), _texts(1, 61, 7, 30, 2, 19)
    takes = [Collector() for _ in texts]
    llm.score(texts, takes)
    _check(texts, takes)
    assert len(takes[1].pieces) > 1, "a long text comes in pieces"


def test_a_preempted_text_hands_over_nothing_twice(make_toy: Make) -> None:
    """The cache holds the text, but not together with the generation that grows meanwhile."""
    llm, texts = make_toy(eos=(), rows=2, cache_tokens=48, windows=(0, 0, 0, 0)), _texts(40)
    handle = llm.submit([1, 2, 3], Sampling(max_tokens=30))
    takes = [Collector()]
    llm.score(texts, takes)
    handle.result()
    computed = sum(len(step.input_ids) for step in llm.loop.session.steps)
    assert computed > 40 + 3 + 29, "the text was preempted, and began again"
    _check(texts, takes, windows=(0, 0, 0, 0))


def test_what_a_taker_raises_ends_its_scoring(make_toy: Make) -> None:
    def fail(position: int, logits: np.ndarray) -> None:
        raise ValueError(f"not at {position}")

    llm = make_toy(eos=())
    with pytest.raises(ValueError, match="not at 0"):
        llm.score(_texts(9), [fail])
    assert llm.logits([1, 2]).shape == (2, VOCAB), "the engine goes on"


def test_a_text_that_does_not_fit_is_refused_before_any_runs(make_toy: Make) -> None:
    llm, take = make_toy(eos=()), Collector()
    with pytest.raises(RequestError, match="logits: got 65 tokens, expected at most 64"):
        llm.score(_texts(3, 65), [take, take])
    with pytest.raises(RequestError, match="prompt: got no tokens"):
        llm.score([[1], []], [take, take])
    assert not take.pieces


def test_submit_all_starts_everything_in_one_step(make_toy: Make) -> None:
    llm = make_toy(eos=(), rows=3)
    handles = llm.submit_all(_texts(2, 3, 4), [Sampling(max_tokens=n) for n in (1, 2, 3)])
    assert [len(handle.result().token_ids) for handle in handles] == [1, 2, 3]
    assert len(llm.loop.session.steps[0].input_ids) == 9
