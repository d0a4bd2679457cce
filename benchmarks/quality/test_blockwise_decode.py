"""Tests of reading by blocks: the errors of attention agree with numpy's on the recorded inputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality.blockwise_decode import Reader, Reading, ReadingSizes, read_texts
from benchmarks.quality.cache_accuracy import ComparedCache
from benchmarks.quality.cache_codecs import Codec, parse_codec
from benchmarks.quality.token_scores import KeepLogits, ScoreAgainst
from enginewright.runtime.artifact import directory
from enginewright.runtime.evaluation.texts import Text
from tests.support.runtime.tiny_engine import write_engine

pytestmark = pytest.mark.native

TEXT = Text(tokens=tuple(np.random.default_rng(0).integers(1, 290, 700).tolist()), given=1, size=1, draw=0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(tmp_path_factory.mktemp("engine") / "tiny", windows=(0, 0), encoded=(False, False))


def read(reader: Reader, codec: Codec | None) -> tuple[Reading, np.ndarray]:
    """The reading of TEXT, and its logits."""
    logits = np.zeros((len(TEXT.tokens) - 1, reader.vocabulary), np.float32)
    return reader.read(TEXT, codec, KeepLogits(logits)), logits


@pytest.mark.parametrize("window", [0, 300])
def test_taps_show_what_attention_did(window: int, tmp_path: Path) -> None:
    root = write_engine(tmp_path / "tiny", windows=(window, 0), encoded=(False, False))
    with Reader(root, tmp_path / "tapped", 1) as reader:
        shadow, _ = read(reader, None)
    assert [layer.window for layer in shadow.attention] == [window, 0]
    for layer, keys, values in zip(shadow.attention, *shadow.true, strict=True):
        assert layer.output.shape == (699, 4, 16) and layer.scale == 0.25
        np.testing.assert_allclose(layer.over(keys, values), layer.output[256:], atol=1e-4)
        some = layer.rows(every=2)
        assert some.tolist() == [*range(256, 384), *range(512, 640)]
        np.testing.assert_allclose(layer.over(keys, values, every=2), layer.output[some], atol=1e-4)


def test_the_first_layer_accumulates_nothing(engine: Path, tmp_path: Path) -> None:
    codec = parse_codec("hadamard-token-k4v4")
    with Reader(engine, tmp_path / "tapped", 1) as reader:
        (shadow, _), (reading, _) = read(reader, None), read(reader, codec)
    restored = codec.restore_layers(*shadow.true, [0, 1])
    outputs = [layer.over(keys, values) for layer, keys, values in zip(shadow.attention, *restored, strict=True)]
    wrong = [np.abs(reading.attention[layer].output[256:] - outputs[layer]).max() for layer in (0, 1)]
    assert wrong[0] < 5e-3 < wrong[1]  # restored values are rounded to halves in one, not in the other
    np.testing.assert_array_equal(reading.true[0][0], shadow.true[0][0])
    assert np.abs(reading.true[0][1] - shadow.true[0][1]).max() > 0.01


def test_exact_layers(engine: Path, tmp_path: Path) -> None:
    with Reader(engine, tmp_path / "tapped", 1) as reader:
        (shadow, _), (reading, _) = read(reader, None), read(reader, parse_codec("kivi-k2v2", exact_layers=1))
    for true, stored in zip(shadow.true, reading.stored, strict=True):
        np.testing.assert_array_equal(stored[0], true[0])
        assert np.abs(stored[1] - true[1]).max() > 0.1


def test_a_run_goes_on_where_it_was_stopped(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The errors of a reading that is kept are not measured again, and are those of a whole run."""
    manifest = directory.load(engine)
    texts = [TEXT, dataclasses.replace(TEXT, tokens=TEXT.tokens[:400], draw=1)]
    caches = [
        ComparedCache(name=name, engine=engine, manifest=manifest, codec=parse_codec(name))
        for name in ("kivi-k2v2", "kvarn-k2v2")
    ]
    whole = read_texts(engine, caches, texts, 1)
    read_texts(engine, caches, texts[:1], 1, keep=tmp_path)
    read_texts(engine, caches[:1], texts[1:], 1, keep=tmp_path)
    readings: list[Codec | None] = []
    real = Reader.read
    monkeypatch.setattr(
        Reader, "read", lambda self, text, codec, take: readings.append(codec) or real(self, text, codec, take)
    )
    again = read_texts(engine, caches, texts, 1, keep=tmp_path)
    assert readings == [None, caches[1].codec]
    for ours, theirs in zip(again, whole, strict=True):
        assert ours.divergence() == theirs.divergence() and ours.accumulated.summary() == theirs.accumulated.summary()
        assert ours.draws == 2 and ours.tokens == 699 - 256 + 399 - 256
    only = read_texts(engine, caches, texts, 1, sizes=ReadingSizes(static=0))
    assert only[0].static.summary() is None and only[0].perplexity() == whole[0].perplexity()


def test_scores_are_those_of_the_logits(engine: Path, tmp_path: Path) -> None:
    with Reader(engine, tmp_path / "tapped", 1) as reader:
        (_, exact), (_, ours) = read(reader, None), read(reader, parse_codec("kivi-k2v2"))
        scoring = ScoreAgainst(TEXT, exact, 256)
        reader.read(TEXT, parse_codec("kivi-k2v2"), scoring)
    p, q = (torch.log_softmax(torch.from_numpy(x[256:]).double(), -1) for x in (exact, ours))
    targets = torch.tensor(TEXT.tokens[257:])[:, None]
    scores = scoring.scores()
    assert scores.begin == 256
    np.testing.assert_allclose(scores.kl, (p.exp() * (p - q)).sum(-1), atol=1e-12)
    np.testing.assert_allclose(scores.nats, -q.gather(1, targets)[:, 0])
    np.testing.assert_allclose(scores.exact_nats, -p.gather(1, targets)[:, 0])
    np.testing.assert_array_equal(scores.agreed, p.argmax(-1) == q.argmax(-1))
