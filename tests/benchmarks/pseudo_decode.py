"""How far quantised caches are off on a model's own keys and values, read block by block as in decoding.

A text is read in blocks of one tile, so that each block sees its tile exactly, and all between the sinks and itself as
the cache holds it: what decoding token by token would see. A shadow run over an exact cache reads the same tokens. Errors
are static, of the shadow's tiles put through the codec, or accumulated, of what the cache holds in the end, whose tiles
were computed from quantised ones.

Source: arXiv 2606.03458 (KVarN), pseudo-decode and the errors of token norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from cache_accuracy import Cache
from cache_codecs import Codec, Doubles, Floats
from numpy.typing import NDArray
from quantised_cache import CompletedTiles, QuantisedSession, open_quantised
from tqdm import tqdm

from enginewright.plugins.ops import TILE_TOKENS
from enginewright.runtime.errors import RequestError
from enginewright.runtime.evaluation import intervals
from enginewright.runtime.evaluation.contenders import Contender
from enginewright.runtime.evaluation.divergence import divergence_of
from enginewright.runtime.evaluation.intervals import WORST_SHARE, Estimate
from enginewright.runtime.evaluation.texts import Text
from enginewright.runtime.llm import LLM

FIRST_AFFECTED = 2 * TILE_TOKENS
"""The first position whose attention sees a quantised tile."""


@dataclass
class TileErrors:
    """Errors of many tiles; `add` takes more.

    key_norms: of each token, layer and head | |K| - |K'| | / |K|. keys, values: of each tile |X - X'| / |X|.
    """

    key_norms: list[Floats] = field(default_factory=list)
    keys: list[Floats] = field(default_factory=list)
    values: list[Floats] = field(default_factory=list)

    def add(self, true: tuple[Floats, Floats], stored: tuple[Floats, Floats]) -> None:
        """Count tiles of keys and values [..., tokens, D]."""
        (keys, values), (stored_keys, stored_values) = true, stored
        size = np.linalg.norm(keys, axis=-1)
        self.key_norms.append((np.abs(np.linalg.norm(stored_keys, axis=-1) - size) / size).ravel())
        self.keys.append(_relative(keys, stored_keys))
        self.values.append(_relative(values, stored_values))

    def summary(self) -> dict[str, float]:
        """Means: of the tokens' norm errors, of the worst 5 % of them, and of the tiles' errors."""
        norms = np.sort(np.concatenate(self.key_norms))[::-1]
        worst = norms[: max(1, round(WORST_SHARE * len(norms)))]
        return {
            "key_norm": float(norms.mean()),
            "key_norm_worst": float(worst.mean()),
            "keys": float(np.concatenate(self.keys).mean()),
            "values": float(np.concatenate(self.values).mean()),
        }


@dataclass(frozen=True, kw_only=True)
class CacheErrors:
    """What one cache did to the texts. kl: of each draw's tokens that see a quantised tile, in nats, from the shadow."""

    cache: Cache
    static: TileErrors
    accumulated: TileErrors
    kl: dict[int, list[Doubles]]
    agreed: list[NDArray[np.bool_]]

    @property
    def tokens(self) -> int:
        """Compared with the shadow."""
        return sum(len(each) for each in self.agreed)

    @property
    def top1(self) -> float:
        """Share of tokens with the shadow's most probable token."""
        return float(np.concatenate(self.agreed).mean())

    def divergence(self, seed: int = 0) -> tuple[Estimate, Estimate]:
        """Mean KL per token, and that of the worst 5 % of tokens, with bootstrap intervals over the draws."""
        draws = [np.concatenate(each) for each in self.kl.values()]
        mean = intervals.ratio([float(each.sum()) for each in draws], [len(each) for each in draws])
        return (
            intervals.bootstrap(mean, len(draws), seed),
            intervals.bootstrap(intervals.worst_mean(draws), len(draws), seed),
        )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One text read over one cache. true, stored: keys and values [layers, tiles, heads, TILE_TOKENS, D]."""

    logits: NDArray[np.float32]
    true: tuple[Floats, Floats]
    stored: tuple[Floats, Floats]


def read_texts(
    contender: Contender, caches: Sequence[Cache], texts: Sequence[Text], threads: int | None
) -> list[CacheErrors]:
    """Return what each simulated cache with a codec does to the texts.

    Raises:
        RequestError: no text has a scored token that sees a quantised tile.
    """
    long = [text for text in texts if len(text.tokens) > FIRST_AFFECTED + 1]
    if not long:
        raise RequestError(f"--norms: got no text of more than {FIRST_AFFECTED + 1} tokens; choose a harder --level")
    errors = [
        CacheErrors(cache=cache, static=TileErrors(), accumulated=TileErrors(), kl={}, agreed=[])
        for cache in caches
        if cache.codec is not None
    ]
    with open_quantised(contender.root, None, threads=threads, max_batch=1, chunk=TILE_TOKENS) as llm:
        for text in tqdm(long, unit="text", disable=None):
            shadow = read(llm, text, None)
            for each in errors:
                assert each.cache.codec is not None
                _count(each, each.cache.codec, text, shadow, read(llm, text, each.cache.codec))
    return errors


def read(llm: LLM, text: Text, codec: Codec | None) -> Reading:
    """Return the text's logits and tiles over a cache of that codec, tile by tile."""
    session = llm.engine.session
    assert isinstance(session, QuantisedSession)
    done: list[CompletedTiles] = []
    session.codec, session.observer = codec, done.append
    logits = llm.logits(text.tokens[:-1])
    session.observer = None
    return Reading(
        logits=logits,
        true=(_joined([each.keys for each in done]), _joined([each.values for each in done])),
        stored=(_joined([each.stored_keys for each in done]), _joined([each.stored_values for each in done])),
    )


def _count(errors: CacheErrors, codec: Codec, text: Text, shadow: Reading, reading: Reading) -> None:
    """Add one text's errors."""
    errors.static.add(shadow.true, codec.restore(*shadow.true))
    errors.accumulated.add(shadow.true, reading.stored)
    rows = slice(max(text.given - 1, FIRST_AFFECTED), None)
    ours, theirs = reading.logits[rows], shadow.logits[rows]
    errors.kl.setdefault(text.draw, []).append(divergence_of(theirs, ours))
    errors.agreed.append(ours.argmax(axis=1) == theirs.argmax(axis=1))


def _joined(tiles: Sequence[Floats]) -> Floats:
    joined: Floats = np.concatenate([each.astype(np.float64) for each in tiles], axis=1)
    return joined


def _relative(x: Floats, stored: Floats) -> Floats:
    """Relative error of each tile [..., tokens, D], by Frobenius norms."""
    wrong: Floats = np.linalg.norm(x - stored, axis=(-2, -1)) / np.linalg.norm(x, axis=(-2, -1))
    return wrong.ravel()
