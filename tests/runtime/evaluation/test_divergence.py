"""Tests of KL and likelihoods, streamed in pieces, against the whole logits in plain numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from enginewright.runtime.errors import ArtifactError
from enginewright.runtime.evaluation import softmax
from enginewright.runtime.evaluation.divergence import diverge, divergence_of
from enginewright.runtime.evaluation.perplexity import negative_log_likelihood, score_texts
from enginewright.runtime.evaluation.texts import Text
from enginewright.runtime.llm import LLM

Make = Callable[..., LLM]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _texts() -> list[Text]:
    """Texts with one and with many given and scored tokens."""
    rng = np.random.default_rng(0)
    shapes = ((1, 1), (1, 40), (30, 1), (17, 23), (5, 2))
    return [
        Text(tokens=tuple(rng.integers(0, 290, given + scored).tolist()), given=given, size=scored, draw=i)
        for i, (given, scored) in enumerate(shapes)
    ]


def test_scores_are_the_log_likelihoods_of_what_is_scored(make_toy: Make) -> None:
    llm, texts = make_toy(eos=()), _texts()
    scores = score_texts(llm, texts, "toy")
    assert scores.seconds > 0
    for text, nats in zip(texts, scores.nats, strict=True):
        logprobs = _log_softmax(llm.logits(text.tokens))
        expected = [-logprobs[i - 1, text.tokens[i]] for i in range(text.given, len(text.tokens))]
        np.testing.assert_allclose(nats, expected, rtol=1e-12)


def test_divergence_is_that_of_the_whole_logits(make_toy: Make) -> None:
    """The engines hand over pieces of different lengths."""
    texts = _texts()
    reference, engine = make_toy(eos=(), step_tokens=16), make_toy(eos=(), step_tokens=5, windows=(0, 6, 0, 4))
    found = diverge(reference, engine, texts, "toy")
    for text, divergence in zip(texts, found, strict=True):
        rows = slice(text.given - 1, len(text.tokens) - 1)
        p, q = (_log_softmax(llm.logits(text.tokens))[rows] for llm in (reference, engine))
        np.testing.assert_allclose(divergence.kl, (np.exp(p) * (p - q)).sum(-1), rtol=1e-9, atol=1e-14)
        np.testing.assert_array_equal(divergence.agreed, p.argmax(-1) == q.argmax(-1))
    assert max(divergence.kl.max() for divergence in found) > 0.1, "the engines differ, or nothing is compared"
    assert found[0].kl[0] == 0, "they see the same in a window that is not full"


def test_an_engine_does_not_diverge_from_itself(make_toy: Make) -> None:
    for divergence in diverge(make_toy(eos=()), make_toy(eos=(), rows=2, step_tokens=7), _texts(), "toy"):
        assert divergence.kl.max() == 0 and divergence.agreed.all()


def test_logits_are_never_held_whole(make_toy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison asks each engine for its next piece only after the last piece is used up."""
    text = _texts()[1]
    llms = [make_toy(eos=(), step_tokens=5) for _ in range(2)]
    steps: list[list[int]] = []

    def watch(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        steps.append([len(llm.loop.session.steps) for llm in llms])
        return divergence_of(p, q)

    monkeypatch.setattr("enginewright.runtime.evaluation.divergence.divergence_of", watch)
    diverge(llms[0], llms[1], [text], "toy")
    assert len(steps) > 5, "the text comes in pieces"
    assert steps == [[i + 1, i + 1] for i in range(len(steps))]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_failing_engine_fails_the_comparison(make_toy: Make, broken: int) -> None:
    llms = [make_toy(eos=()), make_toy(eos=())]
    llms[broken].loop.session.failures.append(MemoryError("no room"))
    with pytest.raises(MemoryError, match="no room"):
        diverge(llms[0], llms[1], _texts(), "toy")
    assert diverge(llms[0], llms[1], _texts(), "toy")[0].kl[0] == 0, "both go on"


def test_divergence_of_takes_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    p, q = (rng.normal(0, 5, (13, 50)).astype(np.float32) for _ in range(2))
    whole = divergence_of(p, q)
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    np.testing.assert_allclose(whole, (np.exp(log_p) * (log_p - log_q)).sum(-1), rtol=1e-12)
    monkeypatch.setattr(softmax, "_BLOCK", 150)
    np.testing.assert_array_equal(divergence_of(p, q), whole)
    monkeypatch.setattr(softmax, "_BLOCK", 1)
    np.testing.assert_array_equal(divergence_of(p, q), whole)


def test_divergence_resolves_what_a_16_bit_cache_changes() -> None:
    """KL of 1e-10 comes out right: float32 alone has no digits for it."""
    rng = np.random.default_rng(2)
    p = rng.normal(0, 3, (4, 1000)).astype(np.float32)
    q = (p + rng.normal(0, 1e-5, p.shape)).astype(np.float32)
    weights = np.exp(_log_softmax(p))
    change = q.astype(np.float64) - p
    variance = (weights * change**2).sum(-1) - (weights * change).sum(-1) ** 2
    np.testing.assert_allclose(divergence_of(p, q), variance / 2, rtol=1e-2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    p = np.zeros((3, 4), np.float32)
    q = p.copy()
    q[1, 2] = value
    with pytest.raises(ArtifactError, match="not finite"):
        divergence_of(p, q)
    with pytest.raises(ArtifactError, match="not finite"):
        negative_log_likelihood(q, np.zeros(3, np.int64))


def test_extreme_logits_stay_finite() -> None:
    p = np.array([[0.0, -1e4, 3e4]], np.float32)
    assert divergence_of(p, p[:, ::-1].copy())[0] == pytest.approx(3e4)
