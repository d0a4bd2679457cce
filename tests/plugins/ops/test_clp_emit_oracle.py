"""Tests of the definition of CLP's emission against the values and invariants of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest

from enginewright.plugins.oracles.clp_emit import NOTHING, SILU, clp_emit, extra_lengths, head_state


def classifier_of(probabilities: list[float], most: int, tau: float) -> int:
    """L of a classifier whose softmax is `probabilities`."""
    scores = np.log(probabilities)
    (length,) = extra_lengths(np.zeros((1, 4)), np.zeros((len(scores), 4)), scores, tau=tau, most=most)
    return int(length)


@pytest.mark.parametrize(
    ("probabilities", "most", "tau", "length"),
    [
        ([0.34, 0.33, 0.33], 2, 0.3, 0),
        ([0.2, 0.45, 0.35], 2, 0.5, 0),
        ([0.2, 0.45, 0.35], 2, 0.4, 1),
        ([0.1, 0.2, 0.7], 1, 0.3, 1),  # a class beyond the heads counts as all of them
        ([0.25, 0.25, 0.25, 0.25], 3, 0.25, 0),  # the first among equals
        ([0.1, 0.9], 1, 1.01, 0),
    ],
)
def test_the_threshold(probabilities: list[float], most: int, tau: float, length: int) -> None:
    assert classifier_of(probabilities, most, tau) == length


def make_heads(rows: int = 6, k: int = 3, classes: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of the op."""
    rng = np.random.default_rng(seed)
    d, h, vocab = 8, 4, 11
    return {
        "hidden": rng.standard_normal((rows, d)),
        "greedy": rng.integers(0, vocab, rows),
        "classifier_weight": rng.standard_normal((classes, d)),
        "classifier_bias": rng.standard_normal(classes),
        "up_weight": rng.standard_normal((k - 1, h, d)),
        "up_bias": rng.standard_normal((k - 1, h)),
        "out_bias": rng.standard_normal((k - 1, vocab)),
        "out_weight": rng.standard_normal((k - 1, vocab, h)),
    }


def test_a_threshold_above_one_leaves_the_models_own_tokens() -> None:
    arrays = make_heads(40)
    tokens, counts = clp_emit(**arrays, k=3, tau=1.01)
    assert (counts == 1).all()
    np.testing.assert_array_equal(tokens[:, 0], arrays["greedy"])
    assert (tokens[:, 1:] == NOTHING).all()


def test_lazy_heads_give_what_eager_heads_give() -> None:
    arrays = make_heads(60)
    tokens, counts = clp_emit(**arrays, k=3, tau=0.3)
    forced = {**arrays, "classifier_weight": np.zeros((3, 8)), "classifier_bias": np.array([0.0, 0.0, 9.0])}
    eager, all_of_them = clp_emit(**forced, k=3, tau=0.3)
    assert (all_of_them == 3).all() and set(counts) == {1, 2, 3}
    emitted = np.arange(3) < counts[:, None]
    np.testing.assert_array_equal(tokens, np.where(emitted, eager, NOTHING))


def test_emitted_lengths_never_grow_with_the_threshold() -> None:
    arrays = make_heads(200)
    totals = [clp_emit(**arrays, k=3, tau=tau)[1].sum() for tau in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]


def test_a_row_is_the_same_alone() -> None:
    arrays = make_heads(20)
    together = clp_emit(**arrays, k=3, tau=0.4)
    for row in range(20):
        alone = {**arrays, "hidden": arrays["hidden"][row : row + 1], "greedy": arrays["greedy"][row : row + 1]}
        for one, many in zip(clp_emit(**alone, k=3, tau=0.4), together, strict=True):
            np.testing.assert_array_equal(one[0], many[row])


def test_what_is_not_finite_is_not_emitted() -> None:
    arrays = make_heads(4)
    arrays |= {"classifier_weight": np.zeros((3, 8)), "classifier_bias": np.array([0.0, 0.0, 9.0])}
    arrays["hidden"][1, 3] = np.nan
    arrays["greedy"][2] = -1
    arrays["out_bias"][1] = -np.inf
    tokens, counts = clp_emit(**arrays, k=3, tau=0.3)
    assert counts.tolist() == [2, 1, 1, 2]
    assert tokens[2].tolist() == [-1, NOTHING, NOTHING]
    assert (tokens[[0, 3], 2] == NOTHING).all()


def test_the_two_forms_of_a_head() -> None:
    state, up, bias = np.array([1.0, -2.0]), np.eye(2), np.array([0.5, 0.0])
    gelu = [0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in (1.5, -2.0)]
    silu = [x / (1 + math.exp(-x)) for x in (1.5, -2.0)]
    np.testing.assert_allclose(head_state(state, up, bias), gelu)
    np.testing.assert_allclose(head_state(state, up, bias, activation=SILU, residual=True), silu + state)
