"""Tests of attention weights over stored tokens, next to a loop over queries and keys."""

from __future__ import annotations

import math

import numpy as np
import pytest

from enginewright.runtime.cache.policies.attention_weights import (
    attention_logits,
    causal_weights,
    check_scores,
    softmax,
)
from enginewright.runtime.errors import RequestError


def draw(*shape: int, dtype: type = np.float64) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(("heads", "group", "window", "held"), [(1, 1, 1, 1), (2, 3, 4, 11), (3, 1, 5, 5)])
def test_causal_weights_equal_a_loop(heads: int, group: int, window: int, held: int) -> None:
    queries, keys, sinks = draw(heads * group, window, 6), draw(heads, held, 6) * 2, draw(heads * group)
    weights = causal_weights(queries, keys, scale=0.3, softcap=1.5, sinks=sinks)
    assert weights.shape == (heads, group, window, held)
    for head in range(heads * group):
        for query in range(window):
            seen = held - window + query + 1
            logits = [
                1.5 * math.tanh(0.3 * float(queries[head, query] @ key) / 1.5) for key in keys[head // group, :seen]
            ]
            whole = sum(map(math.exp, logits)) + math.exp(sinks[head])
            wanted = [math.exp(each) / whole for each in logits] + [0.0] * (held - seen)
            np.testing.assert_allclose(weights[head // group, head % group, query], wanted, rtol=1e-12)


def test_halves_are_widened_before_they_are_multiplied() -> None:
    queries, keys = draw(2, 3, 64, dtype=np.float16), draw(1, 9, 64, dtype=np.float16)
    logits = attention_logits(queries, keys)
    assert logits.dtype == np.float32
    exact = attention_logits(queries.astype(np.float64), keys.astype(np.float64))
    np.testing.assert_allclose(logits, exact, atol=1e-5)  # rounding of 64 products of float32


def test_a_softmax_of_large_logits_is_finite() -> None:
    np.testing.assert_array_equal(softmax(np.array([1000.0, -1000.0, -np.inf])), [1, 0, 0])
    np.testing.assert_allclose(softmax(np.array([3.0, 3.0]), np.array([2000.0])), [0, 0])


@pytest.mark.parametrize(
    ("queries", "keys"), [((3, 1, 4), (2, 5, 4)), ((2, 1, 3), (2, 5, 4)), ((2, 6, 4), (2, 5, 4))], ids=["H", "D", "w"]
)
def test_arrays_that_do_not_fit_are_refused(queries: tuple[int, ...], keys: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        attention_logits(np.zeros(queries), np.zeros(keys))


def test_nan_is_refused_and_infinity_is_not() -> None:
    check_scores(np.array([np.inf, -np.inf, 0]), "here")
    with pytest.raises(RequestError, match="here: got scores with NaN"):
        check_scores(np.array([0, np.nan]), "here")
