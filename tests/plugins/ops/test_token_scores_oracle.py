"""Tests of TokenScores' oracle against values that were computed by hand or in float64 from the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.plugins.oracles.token_scores import similarity, token_scores
from tests.support.ops.policy_caches import pool_of

N, W, DIM = 24, 4, 8


def reference_keys() -> np.ndarray:
    """keys[h, i, d] = sin(0.7 h d + 0.21 (i mod 9) d) + 0.3 cos(0.13 i h + d), counted from 1."""
    h, i, d = np.meshgrid(np.arange(1, 3), np.arange(1, N + 1), np.arange(1, DIM + 1), indexing="ij")
    return np.sin(0.7 * h * d + 0.21 * (i % 9) * d) + 0.3 * np.cos(0.13 * i * h + d)


def reference_queries() -> np.ndarray:
    """queries[q, t, d] = a_q cos(0.5 q d + 0.4 t), counted from 1; a = 1, 1, 3, 3."""
    q, t, d = np.meshgrid(np.arange(1, 5), np.arange(1, W + 1), np.arange(1, DIM + 1), indexing="ij")
    return np.array([1, 1, 3, 3])[:, None, None] * np.cos(0.5 * q * d + 0.4 * t)


def scores(**attributes: int) -> tuple[np.ndarray, np.ndarray]:
    tiles, table = pool_of(reference_keys(), value_dim=3)
    ring = reference_queries()[None]  # position p at entry p mod 4; the last is 23
    lens = np.full((1, 1, 2), N, np.int32)
    given = {"layer": 0, "kv_heads": 2, "scale": DIM**-0.5, "window": W, "kv_bits": 32, **attributes}
    zero = np.zeros(1, np.int32)
    importance, redundancy = token_scores(ring, tiles, zero, lens, table, np.array([23]), **given)
    return importance[0, :, :N], redundancy[0, :, :N]


def pooled(x: np.ndarray, reduce: str) -> np.ndarray:
    """Three neighbours as one: their maximum, or their mean with zeros outside counted."""
    padded = np.pad(x, ((0, 0), (1, 1)), constant_values=-np.inf if reduce == "max" else 0)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 3, axis=1)
    return windows.max(axis=2) if reduce == "max" else windows.mean(axis=2)


def test_importance_of_decoding_is_that_of_r_kv() -> None:
    found = pooled(scores(scope=0, group=0)[0][:, : N - W], "max")
    wanted = [
        [0.05156467, 0.06806016, 0.07174318, 0.07174318, 0.07174318, 0.06002092],
        [0.05121066] * 3 + [0.09079062] * 3,
    ]
    np.testing.assert_allclose(found[:, :6], wanted, atol=2e-8)


def test_importance_of_a_prompt_is_that_of_snapkv() -> None:
    found = pooled(scores(scope=1, group=1)[0][:, : N - W], "mean")
    wanted = [
        [0.11244427, 0.19088041, 0.21702655, 0.22067255, 0.20217963, 0.19021676],
        [0.05626915, 0.08866845, 0.14027381, 0.22782408, 0.27828323, 0.25240016],
    ]
    np.testing.assert_allclose(found[:, :6], wanted, atol=2e-8)


def test_redundancy_is_that_of_r_kv() -> None:
    wanted = [
        [0.04152544, 0.04138815, 0.04449450, 0.04682835, 0.04575007, 0.04525052],
        [0.04414052, 0.04543563, 0.04480317, 0.04368947, 0.04348040, 0.04523123],
    ]
    np.testing.assert_allclose(scores(redundancy=1)[1][:, :6], wanted, atol=2e-8)


def test_redundancy_by_hand() -> None:
    eight = ("1000", "0100", "0010", "0001", "1100", "0110", "0011", "1001")
    keys = np.array([[float(c) for c in key] for key in eight])
    np.testing.assert_allclose(
        similarity(keys, 0.5)[:6], [0.127778, 0.116969, 0.116969, 0.107074, 0.144792, 0.132543], atol=5e-7
    )
    repeated = np.eye(3)[[0, 1, 0, 0, 2]]
    np.testing.assert_allclose(similarity(repeated, 0.5), [0.261118, 0.175032, 0.213785, 0.175032, 0.175032], atol=5e-7)


@pytest.mark.parametrize("scope", [0, 1])
def test_what_is_not_scored_is_0(scope: int) -> None:
    importance, redundancy = scores(scope=scope, redundancy=1)
    end = N - W if scope == 0 else N
    assert (importance[:, :end] > 0).all() and (redundancy[:, :end] > 0).all()
    assert (importance[:, end:] == 0).all() and (redundancy[:, end:] == 0).all()


@pytest.mark.parametrize("scope", [0, 1])
def test_a_head_that_holds_no_more_than_the_window_has_no_scores(scope: int) -> None:
    importance, redundancy = scores(scope=scope, window=N, redundancy=1)
    assert not importance.any() and not redundancy.any()
