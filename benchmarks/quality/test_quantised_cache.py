"""Tests of the simulated cache: the right tiles are quantised at the right time, and other requests change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.cache_codecs import Codec, parse_codec
from benchmarks.quality.quantised_cache import CompletedTiles, QuantisedSession, open_quantised
from enginewright.runtime import Sampling, UnsupportedError, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.cache import capacity
from tests.support.runtime.tiny_engine import write_engine

pytestmark = pytest.mark.native

CODEC = parse_codec("kvarn-k2v2")
TOLERANCE = 2e-4  # one token's matrix products differ from a batch's by rounding


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(
        tmp_path_factory.mktemp("engine") / "tiny", windows=(0, 0), encoded=(False, False), max_context=2048
    )


def tokens(length: int, seed: int = 0) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(1, 290, length).tolist()
    return ids


def read(engine: Path, codec: Codec | None, text: list[int]) -> tuple[np.ndarray, list[CompletedTiles]]:
    done: list[CompletedTiles] = []
    with open_quantised(engine, codec, threads=1, max_batch=1) as llm:
        assert isinstance(llm.loop.session, QuantisedSession)
        llm.loop.session.observer = done.append
        return llm.logits(text), done


def test_without_codec_nothing_changes(engine: Path) -> None:
    with load(engine, 1) as llm:
        np.testing.assert_allclose(read(engine, None, tokens(500))[0], llm.logits(tokens(500)), atol=TOLERANCE)


def test_first_and_newest_tile_are_exact(engine: Path) -> None:
    exact, _ = read(engine, None, tokens(600))
    quantised, done = read(engine, CODEC, tokens(600))
    np.testing.assert_array_equal(quantised[:256], exact[:256])
    assert np.abs(quantised[256:] - exact[256:]).max(axis=1).min() > TOLERANCE
    assert [each.tiles.tolist() for each in done] == [[1], [2], [3]]
    assert all(each.rows.tolist() == [0] for each in done)


def test_completed_tiles_are_restored_in_place(engine: Path) -> None:
    _, shadow = read(engine, None, tokens(600))
    with open_quantised(engine, CODEC, threads=1, max_batch=1) as llm:
        session = llm.loop.session
        assert isinstance(session, QuantisedSession)
        kept: list[tuple[CompletedTiles, list[np.ndarray]]] = []
        session.observer = lambda done: kept.append((done, [pool.copy() for pool in session._keys]))
        llm.logits(tokens(600))
    first, pools = kept[0]
    for got, expected in ((first.keys, shadow[0].keys), (first.values, shadow[0].values)):
        np.testing.assert_array_equal(got, expected)  # before it, nothing was quantised
    keys, values = CODEC.restore(first.keys, first.values)
    np.testing.assert_array_equal(first.stored_keys, keys.astype(np.float16))
    np.testing.assert_array_equal(first.stored_values, values.astype(np.float16))
    for layer, pool in enumerate(pools):
        held = pool.reshape(len(pool), 128, -1)
        for head in range(2):
            assert any((tile == first.stored_keys[layer, 0, head]).all() for tile in held)


def test_decoding_sees_what_reading_by_blocks_sees(engine: Path) -> None:
    prompt = tokens(100)
    with open_quantised(engine, CODEC, threads=1, max_batch=1) as llm:
        (done,) = llm.generate([prompt], Sampling(max_tokens=420, ignore_eos=True, model_defaults=False))
    logits, _ = read(engine, CODEC, [*prompt, *done.token_ids[:-1]])
    after = logits[len(prompt) - 1 :]
    chosen = np.take_along_axis(after, np.array(done.token_ids)[:, None], axis=1)[:, 0]
    assert (chosen >= after.max(axis=1) - TOLERANCE).all()


def test_neighbours_change_nothing(engine: Path) -> None:
    prompts = [tokens(length, seed=length) for length in (1300, 40, 700, 513, 90, 1024, 300, 5)]
    sampling = Sampling(max_tokens=200, ignore_eos=True, model_defaults=False)
    with open_quantised(engine, CODEC, threads=1, max_batch=8) as llm:
        together = llm.generate(prompts, sampling)
    with open_quantised(engine, CODEC, threads=1, max_batch=1) as llm:
        for prompt, completion in zip(prompts, together, strict=True):
            assert llm.generate([prompt], sampling)[0].token_ids == completion.token_ids


def test_layers_with_a_window(tmp_path: Path) -> None:
    root = write_engine(tmp_path / "windowed", windows=(0, 256), encoded=(False, False), max_context=2048)
    exact, shadow = read(root, None, tokens(900))
    for windowed in (False, True):
        codec = parse_codec("kvarn-k2v2", windowed=windowed)
        quantised, done = read(root, codec, tokens(900))
        np.testing.assert_array_equal(quantised[:256], exact[:256])
        assert np.abs(quantised[256:] - exact[256:]).max(axis=1).min() > TOLERANCE
        assert [each.tiles.tolist() for each in done] == [[tile] for tile in range(1, 7)]
        for each in done:
            for true, stored in ((each.keys, each.stored_keys), (each.values, each.stored_values)):
                assert (true[1] == stored[1]).all() != windowed and (true[0] != stored[0]).any()
    np.testing.assert_array_equal(done[0].keys, shadow[0].keys)  # before it, nothing was quantised


def test_a_large_vocabulary(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a step has logits for fewer tokens than a tile, texts are read in parts of tiles, to the same result."""
    expected, tiles = read(engine, CODEC, tokens(600))
    manifest = directory.load(engine)
    monkeypatch.setattr(capacity, "_LOGIT_BYTES", 4 * manifest.model.vocab_size * 50)
    found, again = read(engine, CODEC, tokens(600))
    np.testing.assert_allclose(
        found, expected, atol=5e-3
    )  # a part's keys are rounded to halves before the next sees them
    assert [each.tiles.tolist() for each in again] == [each.tiles.tolist() for each in tiles]


def test_other_caches_are_refused(tmp_path: Path) -> None:
    write_engine(tmp_path / "windowed", windows=(0, 64), encoded=(False, False))
    with pytest.raises(UnsupportedError, match="windows of 128 tokens or more"):
        open_quantised(tmp_path / "windowed", CODEC, threads=1, max_batch=1)
