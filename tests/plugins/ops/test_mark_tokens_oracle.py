"""Tests of MarkTokens' oracle against values that were computed in float64 from the papers' formulas."""

from __future__ import annotations

import numpy as np

from enginewright.plugins.oracles.mark_tokens import mark_tokens, update_recurrence
from tests.plugins.ops.test_token_scores_oracle import DIM, N, W, reference_keys, reference_queries
from tests.support.ops.policy_caches import pool_of


def test_the_mass_is_that_of_h2o() -> None:
    tiles, table = pool_of(reference_keys(), value_dim=3)
    query = reference_queries().transpose(1, 0, 2)
    marks = np.zeros((len(tiles), 1, 128), np.float32)
    marks[:, :, N - W :] = 7  # of tokens that had these places
    starts, lens = np.array([0, W], np.int32), np.full((1, 1, 2), N - W, np.int32)
    given = {"layer": 0, "kv_heads": 2, "scale": DIM**-0.5, "kind": 0, "kv_bits": 32}
    found = mark_tokens(query, tiles, starts, lens, table, np.arange(N - W, N), marks, **given)
    wanted = [
        [0.16169016, 0.17564265, 0.23530843, 0.24012858, 0.18658064, 0.17982967],
        [0.03785862, 0.13094884, 0.09719790, 0.19267469, 0.39359966, 0.24857535],
    ]
    np.testing.assert_allclose(found[:, 0, :6], wanted, atol=3e-8)
    np.testing.assert_allclose(found[:, 0, :N].sum(axis=1), W, rtol=1e-6)
    assert (found[:, 0, N:] == 7).all()


def test_recurrence_is_that_of_lazy_eviction() -> None:
    j, t = np.arange(N), np.arange(40)
    for head, wanted in enumerate(([25, 24, 0, 23, 0, 0, 0, 18], [24, 23, 22, 21, 20, 19, 18, 17])):
        marks = np.stack([j, np.zeros(N)]).astype(np.float32)
        for step in t:
            probabilities = (1 + np.sin(0.9 * (j + 1) * (step % 3) + head)) / 48
            update_recurrence(marks, probabilities, N + int(step), 0.03)
        assert marks[1, :8].tolist() == wanted


def test_given_values_stay_as_they_are() -> None:
    tiles, table = pool_of(reference_keys(), value_dim=3)
    query = reference_queries().transpose(1, 0, 2)
    marks = np.full((len(tiles), 1, 128), 5, np.float32)
    starts, lens = np.array([0, W], np.int32), np.full((1, 1, 2), N - W, np.int32)
    values = np.arange(2.0 * W, dtype=np.float32).reshape(W, 2)
    given = {"layer": 0, "kv_heads": 2, "scale": DIM**-0.5, "kind": 2, "kv_bits": 32}
    found = mark_tokens(query, tiles, starts, lens, table, np.arange(N - W, N), marks, None, values, **given)
    assert found[:, 0, N - W : N].tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert (found[:, :, : N - W] == 5).all() and (found[:, :, N:] == 5).all()


def test_a_new_token_begins_at_its_own_position() -> None:
    tiles, table = pool_of(reference_keys(), value_dim=3)
    query = reference_queries().transpose(1, 0, 2)
    marks = np.full((len(tiles), 2, 128), 5, np.float32)
    starts, lens = np.array([0, W], np.int32), np.full((1, 1, 2), N - W, np.int32)
    given = {"layer": 0, "kv_heads": 2, "scale": DIM**-0.5, "kind": 1, "kv_bits": 32, "alpha": 2.0}
    found = mark_tokens(query, tiles, starts, lens, table, np.arange(100, 100 + W), marks, **given)
    assert (found[:, 0, N - W : N] == np.arange(100, 104)).all() and (found[:, 1, N - W : N] == 0).all()
    assert (found[:, :, : N - W] == 5).all() and (found[:, :, N:] == 5).all()
    given["alpha"] = 1e-30
    found = mark_tokens(query, tiles, starts, lens, table, np.arange(100, 100 + W), marks, **given)
    assert (found[:, 0, :N] == 103).all() and (found[:, 1, : N - W] == 95).all()
