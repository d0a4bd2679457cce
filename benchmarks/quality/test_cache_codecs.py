"""Tests of the compared codecs: their stored bits, and the errors in which they differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.quality.cache_codecs import METHODS, Codec, Doubles, parse_codec, round_groups
from enginewright.plugins.oracles.kvarn import decode, encode, hadamard, record_bytes

TOKENS, DIM = 128, 64


def outlying_keys(seed: int, tiles: int = 8, dim: int = 128) -> Doubles:
    """Keys [tiles, TOKENS, dim] like those of large models: outlier channels, and tokens of very different size."""
    rng = np.random.default_rng(seed)
    channels = np.ones(dim)
    channels[rng.choice(dim, 4, replace=False)] = 12
    keys = rng.standard_normal((tiles * TOKENS, dim)) * channels + rng.standard_normal(dim) * channels
    sizes = np.exp(0.4 * rng.standard_normal(len(keys))) * np.where(rng.random(len(keys)) < 0.02, 6, 1)
    sized: Doubles = keys * sizes[:, None]
    return sized.reshape(tiles, TOKENS, dim)


def keys_error(method: str, keys: Doubles, bits: int = 2) -> float:
    restored, _ = Codec(method=method, k_bits=bits, v_bits=bits).restore(keys, keys)
    return float(np.linalg.norm(restored - keys) / np.linalg.norm(keys))


def values_error(method: str, values: Doubles, bits: int = 2) -> float:
    _, restored = Codec(method=method, k_bits=bits, v_bits=bits).restore(values, values)
    return float(np.linalg.norm(restored - values) / np.linalg.norm(values))


def worst_norm_error(method: str, keys: Doubles) -> float:
    restored, _ = Codec(method=method, k_bits=2, v_bits=2).restore(keys, keys)
    size = np.linalg.norm(keys, axis=-1)
    errors = np.sort((np.abs(np.linalg.norm(restored, axis=-1) - size) / size).ravel())
    return float(errors[-len(errors) // 20 :].mean())


@pytest.mark.parametrize("seed", range(3))
def test_kvarn_keeps_keys_with_outliers_best(seed: int) -> None:
    keys = outlying_keys(seed)
    errors = {method: keys_error(method, keys) for method in METHODS}
    assert errors["kvarn"] < min(errors[m] for m in ("kivi", "hadamard-token", "hadamard-channel", "rtn"))
    norms = {method: worst_norm_error(method, keys) for method in METHODS}
    assert norms["kvarn"] < 0.8 * min(norms[m] for m in ("kivi", "hadamard-token", "hadamard-channel", "rtn"))
    assert values_error("kvarn", keys) < values_error("kivi", keys)


@pytest.mark.parametrize("method", METHODS)
def test_no_method_wins_on_even_noise(method: str) -> None:
    noise = np.random.default_rng(0).standard_normal((16, TOKENS, 128))
    assert keys_error(method, noise) == pytest.approx(0.5, abs=0.03)
    assert values_error(method, noise) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_errors_fall_with_bits(method: str) -> None:
    keys = outlying_keys(0)
    errors = [keys_error(method, keys, bits) for bits in (2, 4, 8)]
    assert errors[0] > 3 * errors[1] > 30 * errors[2] > 0


def test_scales_of_keys() -> None:
    keys = np.random.default_rng(0).standard_normal((TOKENS, DIM)) * np.geomspace(1, 1000, DIM)
    (rtn, values), (kivi, _) = (Codec(method=m, k_bits=4, v_bits=4).restore(keys, keys) for m in ("rtn", "kivi"))
    np.testing.assert_array_equal(rtn, values)  # per token, as values are
    assert np.abs(kivi[:, 0] - keys[:, 0]).max() < 0.5 < np.abs(rtn[:, 0] - keys[:, 0]).max()  # small next to large


def test_hadamard_per_channel_is_kvarn_unbalanced() -> None:
    keys, values = np.random.default_rng(1).standard_normal((2, 3, TOKENS, DIM))
    restored = Codec(method="hadamard-channel", k_bits=4, v_bits=2).restore(keys, values)
    turn = hadamard(DIM)
    expected = decode(encode((keys @ turn).swapaxes(-1, -2), 4, iterations=0)).swapaxes(-1, -2) @ turn
    np.testing.assert_allclose(restored[0], expected, atol=1e-12)
    np.testing.assert_allclose(restored[1], decode(encode(values @ turn, 2, iterations=0)) @ turn, atol=1e-12)


def test_long_axes_have_groups() -> None:
    x = np.random.default_rng(2).standard_normal((5, 256))
    halves = [round_groups(half, 2, axis=-1) for half in np.split(x, 2, axis=1)]
    np.testing.assert_array_equal(round_groups(x, 2, axis=-1), np.concatenate(halves, axis=1))
    np.testing.assert_array_equal(round_groups(x.T, 2, axis=0), np.concatenate(halves, axis=1).T)
    assert Codec(method="rtn", k_bits=2, v_bits=2).bits_per_element(256, 256) == (2.25, 2.25)


@given(seed=st.integers(0, 2**32 - 1), method=st.sampled_from(list(METHODS)), bits=st.sampled_from((2, 4, 8)))
@settings(max_examples=25, deadline=None)
def test_tiles_are_independent(seed: int, method: str, bits: int) -> None:
    keys, values = np.random.default_rng(seed).standard_normal((2, 2, 3, TOKENS, 16))
    codec = Codec(method=method, k_bits=bits, v_bits=bits)
    together = codec.restore(keys, values)
    alone = codec.restore(keys[1, 2], values[1, 2])
    for many, one in zip(together, alone, strict=True):
        np.testing.assert_allclose(many[1, 2], one, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_degenerate_tiles(method: str) -> None:
    zeros = np.zeros((TOKENS, DIM))
    keys, values = Codec(method=method, k_bits=2, v_bits=2).restore(zeros, np.full((TOKENS, DIM), 3.0))
    np.testing.assert_allclose(keys, 0, atol=1e-6)
    np.testing.assert_allclose(values, 3, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("k_bits", "v_bits"), [(2, 2), (4, 2), (4, 4), (8, 8)])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_kvarn_bytes_are_those_of_a_record(dim: int, k_bits: int, v_bits: int) -> None:
    codec = Codec(method="kvarn", k_bits=k_bits, v_bits=v_bits)
    assert codec.bytes_per_token(dim, dim) * TOKENS == record_bytes(dim, TOKENS, k_bits, v_bits)


def test_bytes() -> None:
    assert parse_codec("kvarn-k4v2").bytes_per_token(128, 128) == 108
    assert parse_codec("kivi-k2v2").bits_per_element(128, 128) == (2.25, 2.25)
    assert parse_codec("kivi-k2v2").bits_per_element(64, 64) == (2.25, 2.5)
    assert parse_codec("hadamard-token-k4v2").bits_per_element(64, 64) == (4.5, 2.5)


def test_names() -> None:
    for method in METHODS:
        codec = parse_codec(f"{method}-k4v2")
        assert (codec.method, codec.k_bits, codec.v_bits, codec.name) == (method, 4, 2, f"{method}-k4v2")
    for name, expected in (("kivi", "expected fp16 or one of"), ("x-k2v2", "kivi-kXvY"), ("kivi-k3v2", "2, 4, 8")):
        with pytest.raises(ValueError, match=expected):
            parse_codec(name)
