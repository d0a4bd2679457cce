"""Tests of the definition of DepthMix: known reference values, and the properties that follow from the formula."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.plugins.oracles.depth_mix import depth_mix

TOKENS, HEADS, KV_HEADS, DIM = 3, 4, 2, 4
QUERY, KEY, VALUE = 1, 2, 3
SOURCES = {0: [], 1: [0], 2: [0], 3: [0, 2], 4: [0, 2]}  # stride 2 over five layers
Layer = tuple[np.ndarray, np.ndarray, np.ndarray]

# layer: weights [token 0, head 0] and [token 2, head 1]; mixed values there; attention of token 2, query head 3
REFERENCE = {
    0: (
        ([1.0], [1.0]),
        ([0.6875, 0, -0.6875, -1.375], [1.625, 0.9375, 0.25, -0.4375]),
        [1.401602, 0.714102, 0.316149, -0.371351],
    ),
    1: (
        ([0.476580, 0.523420], [0.523420, 0.476580]),
        ([0.785641, 0.098141, -0.589359, -1.276859], [1.714359, 1.026859, 0.339359, -0.348141]),
        [0.051699, -0.635801, 0.897800, 0.210300],
    ),
    2: (
        ([0.418697, 0.581303], [0.511717, 0.488283]),
        ([0.905489, 0.217989, -0.469511, -1.157011], [-0.145027, 1.120606, 0.433106, -0.254394]),
        [-0.539239, -0.340670, 0.888495, 0.200995],
    ),
}


def made(kind: int, layer: int, heads: int) -> np.ndarray:
    """The example's numbers [TOKENS, heads, DIM], exact as halves."""
    t, h, i = np.indices((TOKENS, heads, DIM))
    return ((((5 * kind + 7 * layer + 11 * t + 13 * h + 17 * i) * 37) % 64 - 32) / 16).astype(np.float32)


def mix_layers(layers: list[Layer], sources: dict[int, list[int]] = SOURCES) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mixed values and weights of each layer, those of earlier ones being sources as they were mixed."""
    done: list[tuple[np.ndarray, np.ndarray]] = []
    for layer, (q, k, v) in enumerate(layers):
        keys, values = [layers[j][1] for j in sources[layer]], [done[j][0] for j in sources[layer]]
        done.append(depth_mix(q, k, v, keys, values))
    return done


def random_layers(count: int, seed: int = 0, heads: int = HEADS, tokens: int = 5) -> list[Layer]:
    """Random queries, keys and values."""
    rng = np.random.default_rng(seed)
    sizes = (heads, KV_HEADS, KV_HEADS)
    return [tuple(rng.standard_normal((tokens, n, DIM)) for n in sizes) for _ in range(count)]  # type: ignore[misc]


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention of one sequence."""
    group, result = q.shape[1] // k.shape[1], np.zeros((len(q), q.shape[1], v.shape[2]))
    for t, h in np.ndindex(*q.shape[:2]):
        logits = k[: t + 1, h // group] @ q[t, h] / np.sqrt(q.shape[2])
        weights = np.exp(logits - logits.max())
        result[t, h] = weights @ v[: t + 1, h // group] / weights.sum()
    return result


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_reference_values(dtype: type) -> None:
    kinds = ((QUERY, HEADS), (KEY, KV_HEADS), (VALUE, KV_HEADS))
    layers: list[Layer] = [tuple(made(kind, i, n).astype(dtype) for kind, n in kinds) for i in range(5)]  # type: ignore[misc]
    np.testing.assert_array_equal(layers[0][0][0, 0], [1.5625, 0.875, 0.1875, -0.5])
    done = mix_layers(layers)
    for layer, (weights, values, attention) in REFERENCE.items():
        mixed, got = done[layer]
        for (t, h), wanted, value in zip(((0, 0), (2, 1)), weights, values, strict=True):
            np.testing.assert_allclose(got[t, h], wanted, atol=1e-6)
            np.testing.assert_allclose(mixed[t, h], value, atol=1e-6)
        q, k, _ = (x.astype(np.float64) for x in layers[layer])
        np.testing.assert_allclose(attend(q, k, mixed.astype(np.float64))[2, 3], attention, atol=1e-6)
    assert done[4][1].shape == (TOKENS, KV_HEADS, 3)


def test_without_sources_the_value_stays() -> None:
    q, k, v = random_layers(1)[0]
    mixed, weights = depth_mix(q, k, v, [], [])
    np.testing.assert_array_equal(mixed, v)
    np.testing.assert_array_equal(weights, np.ones((len(v), KV_HEADS, 1)))


def test_weights_are_a_distribution_and_values_stay_in_their_hull() -> None:
    (q, k, v), *others = random_layers(4)
    keys, values = [layer[1] for layer in others], [layer[2] for layer in others]
    mixed, weights = depth_mix(q * 5, k, v, keys, values)
    np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-12)
    every = np.stack([*values, v])
    assert (mixed >= every.min(axis=0) - 1e-12).all() and (mixed <= every.max(axis=0) + 1e-12).all()
    np.testing.assert_allclose(depth_mix(0 * q, k, v, keys, values)[1], 0.25, atol=1e-12)
    np.testing.assert_allclose(depth_mix(q, k, v, keys, [v, v, v])[0], v, atol=1e-12)


def test_a_token_is_mixed_by_itself() -> None:
    (q, k, v), (_, other_k, other_v) = random_layers(2)
    mixed, _ = depth_mix(q, k, v, [other_k], [other_v])
    for x in (q, k, v, other_k, other_v):
        x[3] = 7
    changed, _ = depth_mix(q, k, v, [other_k], [other_v])
    assert np.flatnonzero((changed != mixed).any(axis=(1, 2))).tolist() == [3]
    alone, _ = depth_mix(q[1:2], k[1:2], v[1:2], [other_k[1:2]], [other_v[1:2]])
    np.testing.assert_allclose(alone, mixed[1:2], atol=1e-12)


def test_all_weight_on_self_is_no_mixing() -> None:
    (q, k, v), (_, other_k, other_v) = random_layers(2)
    q = np.abs(q)
    mixed, weights = depth_mix(q * 1e4, np.abs(k), v, [-np.abs(other_k)], [other_v])
    np.testing.assert_array_equal(weights[..., 1], 1)
    np.testing.assert_array_equal(mixed, v)


def test_sources_bring_their_mixed_values() -> None:
    layers = random_layers(3)
    chain = {0: [], 1: [0], 2: [0, 1]}
    mixed, _ = mix_layers(layers, chain)[2]
    keys, raw = [layer[1] for layer in layers[:2]], [layer[2] for layer in layers[:2]]
    assert np.abs(depth_mix(*layers[2], keys, raw)[0] - mixed).max() > 0.01


def test_a_group_counts_as_the_mean_of_its_heads() -> None:
    (q, k, v), (_, other_k, other_v) = random_layers(2, heads=3 * KV_HEADS)
    expected, _ = depth_mix(q, k, v, [other_k], [other_v])
    mean = q.reshape(-1, KV_HEADS, 3, DIM).mean(axis=2)
    np.testing.assert_allclose(depth_mix(mean, k, v, [other_k], [other_v])[0], expected, atol=1e-12)
    np.testing.assert_allclose(depth_mix(q[:, [2, 0, 1, 5, 4, 3]], k, v, [other_k], [other_v])[0], expected, atol=1e-12)


def test_rotation_by_position_changes_no_weight() -> None:
    (q, k, v), (_, other_k, other_v) = random_layers(2)
    angles = np.arange(len(q))[:, None, None] * np.array([1.0, 0.01])

    def rotate(x: np.ndarray) -> np.ndarray:
        a, b = x[..., :2], x[..., 2:]
        turned = [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)]
        return np.concatenate(turned, axis=-1)

    _, plain = depth_mix(q, k, v, [other_k], [other_v])
    _, turned = depth_mix(rotate(q), rotate(k), v, [rotate(other_k)], [other_v])
    np.testing.assert_allclose(turned, plain, atol=1e-6)
