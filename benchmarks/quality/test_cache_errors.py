"""Tests of the errors of caches: their means by layer and place, and their intervals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.quality.cache_accuracy import ComparedCache
from benchmarks.quality.cache_errors import CacheErrors, TileErrors
from benchmarks.quality.token_scores import TokenScores

CACHE = ComparedCache(name="any", engine=Path(), manifest=cast(Any, SimpleNamespace()))


def scores(draw: int, begin: int, kl: np.ndarray) -> TokenScores:
    return TokenScores(draw=draw, begin=begin, kl=kl, nats=2 + kl, exact_nats=np.full(len(kl), 2.0), agreed=kl < 0.5)


def test_summary() -> None:
    errors = TileErrors()
    ones = np.ones((1, 1, 1, 128, 16))
    errors.add((ones, ones), (1.5 * ones, 0.75 * ones))
    errors.add((ones, ones), (ones, ones))
    outputs = np.ones((128, 2, 16))
    errors.add_outputs([outputs, outputs], [1.25 * outputs, outputs], np.arange(256, 384))
    summary = errors.summary()
    assert summary is not None
    assert (summary["key_norm"], summary["key_norm_worst"], summary["keys"]) == (0.25, 0.5, 0.25)
    assert (summary["values"], summary["outputs"]) == (0.125, 0.125)
    assert errors.outputs_by_layer() == [0.25, 0]


def test_spreads() -> None:
    growing = np.ones((1, 1, 1, 128, 16)) * np.linspace(1, 3, 128)[:, None]
    uneven = TileErrors()
    uneven.add((growing * np.linspace(0.5, 1.5, 16), growing), (growing, growing))
    assert uneven.spreads() == pytest.approx((np.linspace(1, 3, 128).std() / 2, np.linspace(0.5, 1.5, 16).std()))


def test_errors_of_length_and_of_direction() -> None:
    """The share of magnitude is 1 for keys that are only longer, and near 0 for keys that are only turned."""
    keys = np.random.default_rng(0).standard_normal((1, 1, 1, 128, 16))
    longer, turned = TileErrors(), TileErrors()
    longer.add((keys, keys), (1.1 * keys, keys))
    turned.add((keys, keys), (np.roll(keys, 1, axis=-1), keys + 100))
    assert longer.magnitude == [pytest.approx(1)] and longer.worst_keys == [1]
    assert turned.magnitude == [pytest.approx(0)] and turned.worst_keys == [0]


def test_by_layer_and_place() -> None:
    keys = np.ones((2, 4, 1, 128, 16))  # tiles at positions 128 to 640
    stored = keys.copy()
    stored[1, 2:] *= 2
    errors = TileErrors()
    errors.add((keys, keys), (stored, keys))
    assert errors.key_norms_by_layer() == [0, 0.5] and errors.worst_key_norms_by_layer() == [0, 1]
    places = (errors.key_norms_between(*span) for span in ((128, 384), (384, 640), (0, 4096)))
    assert list(places) == [0, 0.5, 0.25]
    assert np.isnan(errors.key_norms_between(1024, 2048))
    outputs = np.ones((10, 1, 4))
    errors.add_outputs([outputs], [outputs * np.arange(1, 11)[:, None, None]], np.arange(300, 310))
    assert errors.outputs_between(300, 302) == 0.5 and errors.outputs_between(302, 400) == 5.5
    assert np.isnan(errors.outputs_between(0, 300))


def test_texts_are_cut_into_draws() -> None:
    errors = CacheErrors(cache=CACHE)
    other = CacheErrors(cache=CACHE)
    for draw, kl in enumerate((np.linspace(0, 1, 700), np.linspace(0, 3, 300))):
        other.scores[:] = [scores(draw, 256, kl)]
        errors.extend(other, 512)
    assert (errors.draws, errors.tokens) == (4, 1000)
    assert [len(each) for each in errors.kl()] == [256, 444, 256, 44]
    assert [len(each) for each in errors.kl(300, 600)] == [212, 88, 212, 44]
    np.testing.assert_array_equal(np.concatenate(errors.kl()[:2]), np.linspace(0, 1, 700))
    mean = errors.divergence()[0]
    assert mean.value == pytest.approx((0.5 * 700 + 1.5 * 300) / 1000)
    assert mean.low is not None and mean.high is not None and mean.low < mean.value < mean.high
    assert errors.more_nats().value == pytest.approx(mean.value)
    assert errors.perplexity().value == pytest.approx(np.exp(2 + mean.value))
    assert errors.exact_perplexity().value == pytest.approx(np.exp(2))
    assert errors.more_divergence(errors).value == 0
    assert errors.top1 == pytest.approx((350 + 50) / 1000, abs=0.002)
