"""Measures the errors of quantised caches on a model's own keys and values, block by block as in decoding.

A text is read in blocks of one tile. Each block sees its own tile and the sinks exactly, and the tiles in between as the cache
holds them; decoding token by token would see the same. A shadow run over an exact cache reads the same tokens. There are two
kinds of error:

    static         the shadow's tiles, put through the codec, against the shadow's tiles
    accumulated    the tiles in the cache at the end, which were computed from quantised tiles, against the shadow's

Source: arXiv 2606.03458 (KVarN), pseudo-decode and the errors of token norms.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.quality.attention_inputs import RecordedAttention, TappedSession, join_steps, write_tapped_engine
from benchmarks.quality.cache_accuracy import ComparedCache
from benchmarks.quality.cache_codecs import Codec, Doubles, Floats
from benchmarks.quality.quantised_cache import CompletedTiles, QuantisedSession, open_quantised
from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.runtime.backends.onnxruntime.cpu_session import CpuSession
from enginewright.runtime.errors import RequestError
from enginewright.runtime.evaluation import intervals
from enginewright.runtime.evaluation.candidates import Candidate
from enginewright.runtime.evaluation.divergence import divergence_of
from enginewright.runtime.evaluation.intervals import WORST_SHARE, Estimate
from enginewright.runtime.evaluation.texts import Text
from enginewright.runtime.loader import load

Tiles: TypeAlias = tuple[Floats, Floats]
Logits: TypeAlias = NDArray[np.float32]

FIRST_AFFECTED = 2 * TILE_TOKENS
"""The first position whose attention sees a quantised tile."""


@dataclass
class TileErrors:
    """Errors of many tiles; `add` and `add_outputs` add to them.

    key_norms: | |K| - |K'| | / |K| of each token, layer and head.
    keys, values: |X - X'| / |X| of each tile.
    outputs: for each text, per layer, the mean error of attention's outputs divided by their mean magnitude.
    token_spread: for each tile of true keys, standard deviation over mean of its tokens' norms.
    channel_spread: for each tile of true keys, standard deviation over mean of its channels' standard deviations. Both
        spreads are the differences that balancing can remove.
    """

    key_norms: list[Floats] = field(default_factory=list)
    keys: list[Floats] = field(default_factory=list)
    values: list[Floats] = field(default_factory=list)
    outputs: list[Doubles] = field(default_factory=list)
    token_spread: list[Floats] = field(default_factory=list)
    channel_spread: list[Floats] = field(default_factory=list)

    def add(self, true: Tiles, stored: Tiles) -> None:
        """Add the errors of tiles of keys and values [..., tokens, D]."""
        (keys, values), (stored_keys, stored_values) = true, stored
        size = np.linalg.norm(keys, axis=-1)
        self.key_norms.append((np.abs(np.linalg.norm(stored_keys, axis=-1) - size) / size).ravel().astype(np.float32))
        self.token_spread.append(_spread(size))
        self.channel_spread.append(_spread(keys.std(axis=-2)))
        self.keys.append(_relative(keys, stored_keys))
        self.values.append(_relative(values, stored_values))

    def add_outputs(self, true: Sequence[Floats], seen: Sequence[Floats]) -> None:
        """Add the errors of all layers' attention over one text."""
        pairs = zip(true, seen, strict=True)
        self.outputs.append(np.array([np.abs(y - x).mean() / np.abs(x).mean() for x, y in pairs]))

    def outputs_by_layer(self) -> list[float]:
        """The mean error of attention's outputs in each layer."""
        means: list[float] = np.mean(self.outputs, axis=0).tolist()
        return means

    def spreads(self) -> tuple[float, float]:
        """The mean spread of tokens' norms and the mean spread of channels over all tiles."""
        return float(np.concatenate(self.token_spread).mean()), float(np.concatenate(self.channel_spread).mean())

    def summary(self) -> dict[str, float] | None:
        """The mean of the tokens' norm errors, of the worst 5 % of them, of the tiles' errors, and of the outputs' errors.

        None if there are no tiles.
        """
        if not self.keys:
            return None
        norms = np.sort(np.concatenate(self.key_norms))[::-1]
        worst = norms[: max(1, round(WORST_SHARE * len(norms)))]
        return {
            "key_norm": float(norms.mean()),
            "key_norm_worst": float(worst.mean()),
            "keys": float(np.concatenate(self.keys).mean()),
            "values": float(np.concatenate(self.values).mean()),
            "outputs": float(np.mean(self.outputs)),
        }


@dataclass(frozen=True, kw_only=True)
class CacheErrors:
    """Errors of one cache over all texts; created by `read_texts`.

    static, accumulated: errors of tiles; empty for an engine that keeps such a cache itself, whose tiles cannot be read.
    kl: draw -> KL divergence from the shadow in nats, for each token that sees a quantised tile.
    agreed: for each text, whether these tokens have the shadow's most probable token.
    """

    cache: ComparedCache
    static: TileErrors
    accumulated: TileErrors
    kl: dict[int, list[Doubles]]
    agreed: list[NDArray[np.bool_]]

    @property
    def tokens(self) -> int:
        """The number of tokens that are compared with the shadow."""
        return sum(len(each) for each in self.agreed)

    @property
    def top1(self) -> float:
        """The share of tokens with the shadow's most probable token."""
        return float(np.concatenate(self.agreed).mean())

    def divergence(self, seed: int = 0) -> tuple[Estimate, Estimate]:
        """The mean KL per token, and that of the worst 5 % of tokens, with bootstrap intervals over the draws."""
        draws = [np.concatenate(each) for each in self.kl.values()]
        mean = intervals.ratio([float(each.sum()) for each in draws], [len(each) for each in draws])
        return (
            intervals.bootstrap(mean, len(draws), seed),
            intervals.bootstrap(intervals.worst_mean(draws), len(draws), seed),
        )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One text read over one cache; created by `Reader.read`.

    logits: of every token.
    true, stored: keys and values [layers, tiles, heads, TILE_TOKENS, D] before and after the codec; the first of them is a
        sequence's second tile.
    attention: the recorded attention of each layer.
    """

    logits: Logits
    true: Tiles
    stored: Tiles
    attention: list[RecordedAttention]


def read_texts(
    candidate: Candidate, caches: Sequence[ComparedCache], texts: Sequence[Text], threads: int | None
) -> list[CacheErrors]:
    """Measure the errors of each cache on the texts; the exact cache is the reference and is left out.

    Raises:
        RequestError: no text is long enough to have a scored token that sees a quantised tile.
    """
    long = [text for text in texts if len(text.tokens) > FIRST_AFFECTED + 1]
    if not long:
        raise RequestError(f"--norms: got no text of more than {FIRST_AFFECTED + 1} tokens; choose a harder --level")
    errors = [
        CacheErrors(cache=cache, static=TileErrors(), accumulated=TileErrors(), kl={}, agreed=[])
        for cache in caches
        if cache.codec is not None or cache.engine != candidate.root
    ]
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        reader = opened.enter_context(Reader(candidate.root, folder / "tapped", threads))
        engines = {
            each.cache.name: opened.enter_context(load(each.cache.engine, threads, max_batch=1, verify=False))
            for each in errors
            if each.cache.codec is None
        }
        for text in tqdm(long, unit="text", disable=None):
            shadow = reader.read(text, None)
            for each in errors:
                if each.cache.codec is None:
                    logits = engines[each.cache.name].logits(text.tokens[:-1])
                else:
                    reading = reader.read(text, each.cache.codec)
                    _count_tiles(each, each.cache.codec, shadow, reading)
                    logits = reading.logits
                _count_tokens(each, text, shadow.logits, logits)
    return errors


class Reader:
    """Reads texts tile by tile over caches of any codec; a with block closes it.

    folder: a new folder for a copy of the engine.
    """

    def __init__(self, engine: Path, folder: Path, threads: int | None) -> None:
        self._scales = write_tapped_engine(engine, folder)
        self._llm = open_quantised(folder, None, threads=threads, max_batch=1)
        session = self._llm.loop.session
        assert isinstance(session, QuantisedSession) and isinstance(session.inner, CpuSession)
        self._session = session
        self._taps = session.inner = TappedSession(session.inner, TILE_TOKENS)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._llm.close()

    def read(self, text: Text, codec: Codec | None) -> Reading:
        """Read the text over a cache with that codec; None: an exact cache."""
        done: list[CompletedTiles] = []
        self._taps.taken.clear()
        self._session.codec, self._session.observer = codec, done.append
        logits = self._llm.logits(text.tokens[:-1])
        return Reading(
            logits=logits,
            true=(_joined([each.keys for each in done]), _joined([each.values for each in done])),
            stored=(_joined([each.stored_keys for each in done]), _joined([each.stored_values for each in done])),
            attention=join_steps(self._taps.taken, self._scales),
        )


def _count_tiles(errors: CacheErrors, codec: Codec, shadow: Reading, reading: Reading) -> None:
    """Add one text's errors of tiles and attention."""
    restored = codec.restore_layers(*shadow.true)
    true = _from(codec.exact_layers, shadow.true)
    errors.static.add(true, _from(codec.exact_layers, restored))
    errors.accumulated.add(true, _from(codec.exact_layers, reading.stored))
    outputs = [layer.output[FIRST_AFFECTED:] for layer in shadow.attention]
    layers = zip(shadow.attention, *restored, strict=True)
    seen = [layer.over(keys.astype(np.float32), values.astype(np.float32)) for layer, keys, values in layers]
    errors.static.add_outputs(outputs, seen)
    errors.accumulated.add_outputs(outputs, [layer.output[FIRST_AFFECTED:] for layer in reading.attention])


def _count_tokens(errors: CacheErrors, text: Text, shadow: Logits, logits: Logits) -> None:
    """Add one text's divergences."""
    rows = slice(max(text.given - 1, FIRST_AFFECTED), None)
    ours, theirs = logits[rows], shadow[rows]
    errors.kl.setdefault(text.draw, []).append(divergence_of(theirs, ours))
    errors.agreed.append(ours.argmax(axis=1) == theirs.argmax(axis=1))


def _from(layer: int, tiles: Tiles) -> Tiles:
    return tiles[0][layer:], tiles[1][layer:]


def _joined(tiles: Sequence[Floats]) -> Floats:
    joined: Floats = np.concatenate([each.astype(np.float64) for each in tiles], axis=1)
    return joined


def _spread(x: Floats) -> Floats:
    """Standard deviation over mean, along the last axis."""
    spread: Floats = x.std(axis=-1) / np.maximum(x.mean(axis=-1), np.finfo(np.float64).tiny)
    return spread.ravel()


def _relative(x: Floats, stored: Floats) -> Floats:
    """Relative error of each tile [..., tokens, D], by Frobenius norms."""
    wrong: Floats = np.linalg.norm(x - stored, axis=(-2, -1)) / np.linalg.norm(x, axis=(-2, -1))
    return wrong.ravel()
