"""Measures the errors of quantised caches on a model's own keys and values, block by block as in decoding.

A text is read in blocks of one tile. Each block sees its own tile and the sinks exactly, and the tiles in between as the cache
holds them; decoding token by token would see the same. A shadow run over an exact cache reads the same tokens. There are two
kinds of error:

    static         the shadow's tiles, put through the codec, against the shadow's tiles
    accumulated    the tiles in the cache at the end, which were computed from quantised tiles, against the shadow's

Source: arXiv 2606.03458 (KVarN), pseudo-decode and the errors of token norms.
"""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.quality.attention_inputs import RecordedAttention, TappedSession, join_steps, write_tapped_engine
from benchmarks.quality.cache_accuracy import ComparedCache
from benchmarks.quality.cache_codecs import Codec, Floats
from benchmarks.quality.cache_errors import FIRST_AFFECTED, CacheErrors, Tiles
from benchmarks.quality.quantised_cache import CompletedTiles, QuantisedSession, open_quantised
from benchmarks.quality.token_scores import KeepLogits, ScoreAgainst
from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.runtime.backends.onnxruntime.cpu_session import CpuSession
from enginewright.runtime.errors import RequestError
from enginewright.runtime.evaluation.texts import Text
from enginewright.runtime.loader import load
from enginewright.runtime.requests.request import TakeLogits

Logits: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ReadingSizes:
    """How much of the texts is measured; the command creates it.

    block: each text is cut into draws of so many positions; 0: draws are those of the texts.
    static: static errors are measured on so many texts, because each takes a second pass through the codec.
    every: those of attention on every so many tiles of tokens, because computing them anew takes as many operations as all
        of the model's own attention.
    """

    block: int = 0
    static: int = 1 << 30
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One text read over one cache; created by `Reader.read`.

    true, stored: keys and values [layers, tiles, heads, TILE_TOKENS, D] before and after the codec; the first of them is a
        sequence's second tile.
    attention: the recorded attention of each layer.
    """

    true: Tiles
    stored: Tiles
    attention: list[RecordedAttention]


def read_texts(
    root: Path,
    caches: Sequence[ComparedCache],
    texts: Sequence[Text],
    threads: int | None,
    *,
    sizes: ReadingSizes | None = None,
    keep: Path | None = None,
) -> list[CacheErrors]:
    """Measure the errors of each cache on the texts; the exact cache is the reference and is left out.

    root: the engine directory with the exact cache.
    keep: folder that keeps the errors of each text and cache, so that a second run continues from there.

    Raises:
        RequestError: no text is long enough to have a scored token that sees a quantised tile.
    """
    long = [text for text in texts if len(text.tokens) > FIRST_AFFECTED + 1]
    if not long:
        raise RequestError(f"--norms: got no text of more than {FIRST_AFFECTED + 1} tokens; choose a harder --level")
    sizes = sizes or ReadingSizes()
    compared = [each for each in caches if each.codec is not None or each.engine != root]
    errors = [CacheErrors(cache=each) for each in compared]
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        reader = opened.enter_context(Reader(root, folder / "tapped", threads))
        engines = {
            each.name: opened.enter_context(load(each.engine, threads, max_batch=1, verify=False))
            for each in compared
            if each.codec is None
        }
        bar = tqdm(total=len(long) * len(errors), unit="reading", disable=None)
        for number, text in enumerate(long):
            shadow = None
            exact = np.memmap(  # on disk, because a vocabulary may be large
                folder / "exact.float32",
                np.float32,
                "w+",
                shape=(len(text.tokens) - 1, reader.vocabulary),
            )
            for each in errors:
                kept = None if keep is None else keep / _name_of(text, each.cache)
                if kept is not None and kept.is_file():
                    found = pickle.loads(kept.read_bytes())  # of this command's own
                else:
                    shadow = shadow or reader.read(text, None, KeepLogits(exact))
                    found = CacheErrors(cache=each.cache)
                    scoring = ScoreAgainst(text, exact, FIRST_AFFECTED)
                    if each.cache.codec is None:
                        engines[each.cache.name].score([text.tokens[:-1]], [scoring])
                    else:
                        reading = reader.read(text, each.cache.codec, scoring)
                        _count_tiles(found, shadow, reading, sizes.every if number < sizes.static else 0)
                    found.scores.append(scoring.scores())
                    if kept is not None:
                        _replace(kept, pickle.dumps(found))
                each.extend(found, sizes.block)
                bar.update()
    return errors


def _name_of(text: Text, cache: ComparedCache) -> str:
    """The name of the file that keeps the errors of a cache on a text."""
    about = repr((text, cache.engine, cache.codec)).encode()
    return f"{cache.name}-{hashlib.sha256(about).hexdigest()[:16]}.pickle"


def _replace(path: Path, content: bytes) -> None:
    """Write the file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".part")
    staged.write_bytes(content)
    staged.replace(path)


class Reader:
    """Reads texts tile by tile over caches of any codec; a with block closes it.

    folder: a new folder for a copy of the engine.
    vocabulary: the number of the model's tokens.
    """

    def __init__(self, engine: Path, folder: Path, threads: int | None) -> None:
        self._scales = write_tapped_engine(engine, folder)
        self._llm = open_quantised(folder, None, threads=threads, max_batch=1)
        session = self._llm.loop.session
        assert isinstance(session, QuantisedSession) and isinstance(session.inner, CpuSession)
        self._session = session
        self._windows = [layer.window for layer in self._llm.manifest.cache.layers]
        self.vocabulary = self._llm.manifest.model.vocab_size
        self._taps = session.inner = TappedSession(session.inner, TILE_TOKENS)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._llm.close()

    def read(self, text: Text, codec: Codec | None, take: TakeLogits) -> Reading:
        """Read the text over a cache with that codec; None: an exact cache. `take` is that of LLM.score."""
        done: list[CompletedTiles] = []
        self._taps.taken.clear()
        self._session.codec, self._session.observer = codec, done.append
        self._llm.score([text.tokens[:-1]], [take])
        return Reading(
            true=(_joined([each.keys for each in done]), _joined([each.values for each in done])),
            stored=(_joined([each.stored_keys for each in done]), _joined([each.stored_values for each in done])),
            attention=join_steps(self._taps.taken, self._scales, self._windows),
        )


def _count_tiles(errors: CacheErrors, shadow: Reading, reading: Reading, every: int) -> None:
    """Add one text's errors of tiles and attention; every: as in ReadingSizes, 0: without static errors."""
    codec = errors.cache.codec
    assert codec is not None
    layers = codec.layers([layer.window for layer in shadow.attention])
    true = _of(layers, shadow.true)
    if every:
        restored = codec.restore_layers(*shadow.true, layers)
        errors.static.add(true, _of(layers, restored))
        rows = shadow.attention[0].rows(every)
        seen = [
            layer.over(keys, values, every) for layer, keys, values in zip(shadow.attention, *restored, strict=True)
        ]
        errors.static.add_outputs([layer.output[rows] for layer in shadow.attention], seen, rows)
    errors.accumulated.add(true, _of(layers, reading.stored))
    rows = shadow.attention[0].rows()
    outputs = ([layer.output[rows] for layer in each.attention] for each in (shadow, reading))
    errors.accumulated.add_outputs(next(outputs), next(outputs), rows)


def _of(layers: Sequence[int], tiles: Tiles) -> Tiles:
    return tiles[0][layers], tiles[1][layers]


def _joined(tiles: Sequence[Floats]) -> Floats:
    """The tiles of all steps as [layers, tiles, heads, tokens, D], in singles, which hold halves exactly."""
    joined: Floats = np.concatenate([each.astype(np.float32) for each in tiles], axis=1)
    return joined
