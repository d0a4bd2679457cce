"""Tests of reading by blocks: the errors of attention agree with numpy's on the recorded inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.blockwise_decode import Reader, TileErrors
from benchmarks.quality.cache_codecs import parse_codec
from enginewright.runtime.evaluation.texts import Text
from tests.support.runtime.tiny_engine import write_engine

pytestmark = pytest.mark.native

TEXT = Text(tokens=tuple(np.random.default_rng(0).integers(1, 290, 700).tolist()), given=1, size=1, draw=0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(tmp_path_factory.mktemp("engine") / "tiny", windows=(0, 0), encoded=(False, False))


def test_taps_show_what_attention_did(engine: Path, tmp_path: Path) -> None:
    with Reader(engine, tmp_path / "tapped", 1) as reader:
        shadow = reader.read(TEXT, None)
    for layer, keys, values in zip(shadow.attention, *shadow.true, strict=True):
        assert layer.output.shape == (699, 4, 16) and layer.scale == 0.25
        again = layer.over(keys.astype(np.float32), values.astype(np.float32))
        np.testing.assert_allclose(again, layer.output[256:], atol=1e-4)


def test_the_first_layer_accumulates_nothing(engine: Path, tmp_path: Path) -> None:
    codec = parse_codec("hadamard-token-k4v4")
    with Reader(engine, tmp_path / "tapped", 1) as reader:
        shadow, reading = reader.read(TEXT, None), reader.read(TEXT, codec)
    restored = codec.restore_layers(*shadow.true)
    outputs = [
        layer.over(keys.astype(np.float32), values.astype(np.float32))
        for layer, keys, values in zip(shadow.attention, *restored, strict=True)
    ]
    wrong = [np.abs(reading.attention[layer].output[256:] - outputs[layer]).max() for layer in (0, 1)]
    assert wrong[0] < 5e-3 < wrong[1]  # restored values are rounded to halves in one, not in the other
    np.testing.assert_array_equal(reading.true[0][0], shadow.true[0][0])
    assert np.abs(reading.true[0][1] - shadow.true[0][1]).max() > 0.01


def test_exact_layers(engine: Path, tmp_path: Path) -> None:
    with Reader(engine, tmp_path / "tapped", 1) as reader:
        shadow, reading = reader.read(TEXT, None), reader.read(TEXT, parse_codec("kivi-k2v2", exact_layers=1))
    for true, stored in zip(shadow.true, reading.stored, strict=True):
        np.testing.assert_array_equal(stored[0], true[0])
        assert np.abs(stored[1] - true[1]).max() > 0.1


def test_errors() -> None:
    errors = TileErrors()
    ones = np.ones((1, 1, 1, 128, 16))
    errors.add((ones, ones), (1.5 * ones, 0.75 * ones))
    errors.add((ones, ones), (ones, ones))
    errors.add_outputs([ones, ones], [1.25 * ones, ones])
    summary = errors.summary()
    assert summary == {"key_norm": 0.25, "key_norm_worst": 0.5, "keys": 0.25, "values": 0.125, "outputs": 0.125}
    assert errors.outputs_by_layer() == [0.25, 0]
    growing = ones * np.linspace(1, 3, 128)[:, None]
    uneven = TileErrors()
    uneven.add((growing * np.linspace(0.5, 1.5, 16), ones), (ones, ones))
    assert uneven.spreads() == pytest.approx((np.linspace(1, 3, 128).std() / 2, np.linspace(0.5, 1.5, 16).std()))
