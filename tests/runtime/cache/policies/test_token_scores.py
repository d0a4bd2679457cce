"""Tests of token scores: values worked out by other means, and what holds for any input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from enginewright.runtime.cache.policies import scores
from enginewright.runtime.cache.policies.attention_weights import attention_logits, causal_weights
from enginewright.runtime.cache.policies.select import keep
from tests.support.runtime.score_example import KERNEL, WINDOW, example_keys, example_queries

FIRST_SIX = {  # of the 20 tokens before the window, in each head
    "importance_decode": (
        [0.05156467, 0.06806016, 0.07174318, 0.07174318, 0.07174318, 0.06002092],
        [0.05121066, 0.05121066, 0.05121066, 0.09079062, 0.09079062, 0.09079062],
    ),
    "importance_prompt": (
        [0.11244427, 0.19088041, 0.21702655, 0.22067255, 0.20217963, 0.19021676],
        [0.05626915, 0.08866845, 0.14027381, 0.22782408, 0.27828323, 0.25240016],
    ),
    "redundancy": (
        [0.04152544, 0.04138815, 0.04449450, 0.04682835, 0.04575007, 0.04525052],
        [0.04414052, 0.04543563, 0.04480317, 0.04368947, 0.04348040, 0.04523123],
    ),
    "rkv": (
        [-0.03221643, -0.03044332, -0.03287073, -0.03497120, -0.03400074, -0.03472338],
        [-0.03460540, -0.03577100, -0.03520179, -0.03024146, -0.03005329, -0.03162905],
    ),
    "attention_mass": (
        [0.16169016, 0.17564265, 0.23530843, 0.24012858, 0.18658064, 0.17982967],
        [0.03785862, 0.13094884, 0.09719790, 0.19267469, 0.39359966, 0.24857535],
    ),
}
Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]
FUNCTIONS: dict[str, Scores] = {
    "importance_decode": lambda queries, keys: scores.importance_decode(queries, keys, KERNEL),
    "importance_prompt": lambda queries, keys: scores.importance_prompt(queries, keys, KERNEL),
    "redundancy": lambda queries, keys: scores.redundancy(keys, queries.shape[1]),
    "rkv": lambda queries, keys: scores.rkv(queries, keys, kernel=KERNEL),
    "attention_mass": scores.attention_mass,
    "tova": scores.tova,
}


@pytest.mark.parametrize("name", FIRST_SIX)
def test_scores_of_the_example(name: str) -> None:
    found = FUNCTIONS[name](example_queries(), example_keys())
    assert found.dtype == np.float64
    np.testing.assert_allclose(found[:, :6], FIRST_SIX[name], atol=5.1e-9)  # eight places


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("rkv", [1, 7, 10, 15, 16, 17, 18, 19], [4, 9, 10, 11, 12, 13, 15, 18]),
        ("importance_prompt", [1, 2, 3, 4, 5, 6, 11, 12], [3, 4, 5, 10, 11, 12, 13, 14]),
    ],
)
def test_tokens_that_stay_in_the_example(name: str, first: list[int], second: list[int]) -> None:
    found = FUNCTIONS[name](example_queries(), example_keys())
    for head, best in enumerate((first, second)):
        assert keep(found[head], 12, WINDOW).tolist() == [*best, 20, 21, 22, 23]


def test_rkv_by_hand() -> None:
    keys = np.array(
        [[list(map(float, key)) for key in ["1000", "0100", "0010", "0001", "1100", "0110", "0011", "1001"]]]
    )
    queries = 2.0 * np.eye(4).reshape(2, 2, 4)
    np.testing.assert_allclose(
        scores.importance_decode(queries, keys, 3), [[0.144420] * 3 + [0.211159] * 3], atol=5.1e-7
    )
    redundant = [0.127778, 0.116969, 0.116969, 0.107074, 0.144792, 0.132543]
    np.testing.assert_allclose(scores.redundancy(keys, 2), [redundant], atol=5.1e-7)
    mixed = [-0.100559, -0.090830, -0.090830, -0.075251, -0.109197, -0.098173]
    np.testing.assert_allclose(scores.rkv(queries, keys, 0.1, 3), [mixed], atol=5.1e-7)


def test_redundancy_of_equal_keys_spares_the_last_one() -> None:
    keys = np.eye(4)[[0, 1, 0, 0, 2]][None]
    np.testing.assert_allclose(
        scores.redundancy(keys, 0), [[0.261118, 0.175032, 0.213785, 0.175032, 0.175032]], atol=5.1e-7
    )


def naive_redundancy(keys: np.ndarray) -> np.ndarray:
    """One head's redundancy of all tokens, from the whole matrix of cosines."""
    unit = keys / (np.linalg.norm(keys, axis=1, keepdims=True) + 1e-8)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, 0)
    for row in cosines:
        row[max(np.flatnonzero(row > 0.5), default=0)] = 0
    weights = np.exp(cosines.mean(axis=0))
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("held", [1, 2, scores.BLOCK, scores.BLOCK + 1, 2 * scores.BLOCK + 61])
def test_redundancy_in_blocks_equals_the_whole_matrix(held: int) -> None:
    rng = np.random.default_rng(held)
    keys = rng.standard_normal((2, held, 5))
    keys[:, ::7] = 0  # without a direction
    found = scores.redundancy(keys, 1)
    for head in range(2):
        np.testing.assert_allclose(found[head], naive_redundancy(keys[head])[:-1], atol=1e-12)


def test_a_mix_of_one_is_the_importance_alone() -> None:
    queries, keys = example_queries(), example_keys()
    np.testing.assert_array_equal(scores.rkv(queries, keys, 1.0), scores.importance_decode(queries, keys))


def test_a_kernel_of_one_leaves_scores_as_they_are() -> None:
    queries, keys = example_queries(), example_keys()
    logits = attention_logits(queries, keys)[..., :-WINDOW].max(axis=1)
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(scores.importance_decode(queries, keys, 1), weights.mean(axis=1))
    sums = causal_weights(queries, keys)[..., :-WINDOW].sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(scores.importance_prompt(queries, keys, 1), sums)


@pytest.mark.parametrize("kernel", [0, 2])
@pytest.mark.parametrize("score", [scores.importance_decode, scores.importance_prompt])
def test_a_kernel_without_a_middle_is_refused(score: Callable[..., np.ndarray], kernel: int) -> None:
    with pytest.raises(ValueError, match=f"kernel: got {kernel}, expected an odd number"):
        score(example_queries(), example_keys(), kernel)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("before", [0, 1])
def test_few_tokens_before_the_window(name: str, before: int) -> None:
    found = FUNCTIONS[name](example_queries(), example_keys()[:, : WINDOW + before])
    assert found.shape == (2, before + (WINDOW if name == "attention_mass" else 0))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_halves_have_scores_of_float32(name: str) -> None:
    queries, keys = example_queries().astype(np.float16), example_keys().astype(np.float16)
    found = FUNCTIONS[name](queries, keys)
    assert found.dtype == np.float32
    wanted = FUNCTIONS[name](queries.astype(np.float64), keys.astype(np.float64))
    np.testing.assert_allclose(found, wanted, atol=2e-6)  # float32 of sums up to 4


def test_a_sink_takes_weight_and_keeps_the_order() -> None:
    logits = attention_logits(example_queries(), example_keys())
    plain, with_sinks = (
        scores.pool_decode(logits, 1),
        scores.pool_decode(logits, 1, np.array([[-9.0, 1.0], [2.0, 0.0]])),
    )
    weights = np.exp(logits[..., :-WINDOW].max(axis=1))
    taken = np.exp([1.0, 2.0])[:, None, None]
    np.testing.assert_allclose(with_sinks, (weights / (weights.sum(axis=-1, keepdims=True) + taken)).mean(axis=1))
    assert (with_sinks < plain).all()


def test_tova_is_the_last_query_over_all_heads() -> None:
    queries, keys = example_queries(), example_keys()
    found = scores.tova(queries, keys)
    last = causal_weights(queries, keys)[:, :, -1].reshape(4, 24)
    np.testing.assert_allclose(found, np.tile(last.mean(axis=0)[:-WINDOW], (2, 1)))


def test_heavy_hitters_by_sum_and_by_share() -> None:
    mass, positions = np.array([6.0, 4.0, 3.0, 1.0]), np.array([0, 2, 7, 9])
    np.testing.assert_array_equal(scores.heavy_hitters(mass, positions, 10, 1), [6, 4, 3])
    np.testing.assert_array_equal(scores.heavy_hitters(mass, positions, 10, 1, normalise=True), [0.6, 0.5, 1])


@pytest.mark.parametrize("length", [5, 12, 13, 300])
def test_streaming_keeps_the_sinks_and_the_newest(length: int) -> None:
    kept = keep(scores.streaming(np.arange(length), 4), 12, 4)
    assert kept.tolist() == (list(range(length)) if length <= 12 else [*range(4), *range(length - 8, length)])


def test_sinks_are_positions_and_not_places() -> None:
    found = scores.keep_sinks(np.zeros((2, 3), np.float32), np.array([[0, 3, 4], [5, 6, 7]]), 4)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[np.inf, np.inf, 0], [0, 0, 0]])


def test_random_scores_follow_from_the_seed() -> None:
    first = scores.random_scores(50, [3, 1])
    np.testing.assert_array_equal(first, scores.random_scores(50, [3, 1]))
    assert (first != scores.random_scores(50, [3, 2])).any()
    assert first.dtype == np.float32 and len(np.unique(first)) > 40


def test_retention_of_the_example() -> None:
    tokens = np.arange(24)
    log_beta = -0.002 * (1.5 + np.sin(1.1 * tokens + 2 * np.arange(2)[:, None]))
    found = scores.retention(log_beta, tokens, 25)
    np.testing.assert_allclose(found[1, 20], 5 * log_beta[1, 20])
    assert keep(found[0, :20], 12, 4).tolist() == [4, 5, 10, 11, 15, 16, 17, 19, 20, 21, 22, 23]
    assert keep(found[1, :20], 12, 4).tolist() == [2, 8, 9, 13, 14, 15, 18, 19, 20, 21, 22, 23]


def test_lazy_scores_of_the_example() -> None:
    last = np.tile(np.arange(24), (2, 1))
    longest = np.zeros((2, 24), np.int64)
    for t in range(40):
        weights = (1 + np.sin(0.9 * (np.arange(24) + 1) * (t % 3) + np.arange(2)[:, None])) / 48
        last, longest = scores.lazy_update(last, longest, weights, 24 + t, 0.03)
    assert longest[:, :8].tolist() == [[25, 24, 0, 23, 0, 0, 0, 18], [24, 23, 22, 21, 20, 19, 18, 17]]
    wanted = [1.96000533, 1.93752711, 0, 1.95652859, 0, 0, 0, 1.94445873]
    np.testing.assert_allclose(scores.lazy_score(last, longest, 63)[0, :8], wanted, atol=5.1e-9)


def test_a_weight_of_alpha_is_a_hit() -> None:
    last, longest = scores.lazy_update(np.array([3, 3]), np.array([4, 0]), np.array([0.5, 0.49]), 5, 0.5)
    assert last.tolist() == [5, 3] and longest.tolist() == [4, 0]


def test_lazy_scores_of_long_idle_tokens_do_not_overflow() -> None:
    with np.errstate(all="raise"):
        found = scores.lazy_score(np.array([0, 0]), np.array([1, 0]), 100_000)
    np.testing.assert_allclose(found, [2 / (1 + np.e), 0])
