"""The errors of a cache: of its tiles, of the attention over them, and of the predictions, with intervals.

All errors can be read by layer and by place in the text, because errors that accumulate are small at a text's beginning and in
the first layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.cache_accuracy import ComparedCache
from benchmarks.quality.cache_codecs import Doubles, Floats
from benchmarks.quality.token_scores import TokenScores, mean_of
from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.runtime.evaluation import intervals
from enginewright.runtime.evaluation.intervals import WORST_SHARE, Estimate

Tiles: TypeAlias = tuple[Floats, Floats]

FIRST_AFFECTED = 2 * TILE_TOKENS
"""The first position whose attention sees a quantised tile."""


@dataclass
class TileErrors:
    """Errors of many tiles, one array for each text; `add` and `add_outputs` add to them.

    key_norms: [layers, tiles, heads, tokens], | |K| - |K'| | / |K| of each token. Layers are those that are quantised, and
        the first tile is a text's second one.
    keys, values: [layers, tiles, heads], |X - X'| / |X| of each tile.
    outputs: [layers, tokens], the summed error of attention's outputs; `sizes` are the summed magnitudes.
    places: [tokens], the positions to which outputs belong.
    token_spread: for each tile of true keys, standard deviation over mean of its tokens' norms.
    channel_spread: for each tile of true keys, standard deviation over mean of its channels' standard deviations. Both
        spreads are the differences that balancing can remove.
    magnitude: of each text, the share of the norm's error in the squared error of the worst 5 % of keys.
    worst_keys: of each text, the share of keys among the worst 5 % of all squared errors, of keys and values together.
    """

    key_norms: list[Floats] = field(default_factory=list)
    keys: list[Floats] = field(default_factory=list)
    values: list[Floats] = field(default_factory=list)
    outputs: list[Doubles] = field(default_factory=list)
    sizes: list[Doubles] = field(default_factory=list)
    places: list[NDArray[np.int64]] = field(default_factory=list)
    token_spread: list[Floats] = field(default_factory=list)
    channel_spread: list[Floats] = field(default_factory=list)
    magnitude: list[float] = field(default_factory=list)
    worst_keys: list[float] = field(default_factory=list)

    def add(self, true: Tiles, stored: Tiles) -> None:
        """Add the errors of one text's tiles of keys and values [layers, tiles, heads, tokens, D]."""
        (keys, values), (stored_keys, stored_values) = true, stored
        size = np.linalg.norm(keys, axis=-1)
        off = np.abs(np.linalg.norm(stored_keys, axis=-1) - size)
        self.key_norms.append((off / size).astype(np.float32))
        self.token_spread.append(_spread(size))
        self.channel_spread.append(_spread(keys.std(axis=-2)))
        self.keys.append(_relative(keys, stored_keys))
        self.values.append(_relative(values, stored_values))
        of_keys, of_values = (((x - y) ** 2).sum(axis=-1).ravel() for x, y in zip(true, stored, strict=True))
        worst = of_keys >= np.quantile(of_keys, 1 - WORST_SHARE)
        self.magnitude.append(float((off.ravel()[worst] ** 2).sum() / max(of_keys[worst].sum(), np.finfo(float).tiny)))
        bound = np.quantile(np.concatenate([of_keys, of_values]), 1 - WORST_SHARE)
        above = int((of_keys >= bound).sum()), int((of_values >= bound).sum())
        self.worst_keys.append(above[0] / sum(above))

    def add_outputs(self, true: Sequence[Floats], seen: Sequence[Floats], places: NDArray[np.int64]) -> None:
        """Add the errors of attention over one text: of each layer the outputs [tokens, heads, Dv] at `places`."""
        pairs = list(zip(true, seen, strict=True))
        self.outputs.append(np.array([np.abs(y - x).sum(axis=(1, 2), dtype=np.float64) for x, y in pairs]))
        self.sizes.append(np.array([np.abs(x).sum(axis=(1, 2), dtype=np.float64) for x, _ in pairs]))
        self.places.append(places)

    def extend(self, others: TileErrors) -> None:
        """Add the errors of other texts."""
        for each in fields(self):
            getattr(self, each.name).extend(getattr(others, each.name))

    def outputs_by_layer(self) -> list[float]:
        """The mean error of attention's outputs in each layer, over their mean magnitude."""
        return _ratio(np.concatenate(self.outputs, axis=1), np.concatenate(self.sizes, axis=1))

    def key_norms_by_layer(self) -> list[float]:
        """The mean error of tokens' key norms in each quantised layer."""
        means: list[float] = np.concatenate(self.key_norms, axis=1).mean(axis=(1, 2, 3)).tolist()
        return means

    def worst_key_norms_by_layer(self) -> list[float]:
        """The mean of the worst 5 % of tokens' key norm errors in each quantised layer."""
        return [_worst(layer) for layer in np.concatenate(self.key_norms, axis=1)]

    def key_norms_between(self, begin: int, end: int) -> float:
        """The mean error of key norms of the tokens at positions begin .. end - 1, both whole tiles; nan without any."""
        tiles = slice(max(begin // TILE_TOKENS - 1, 0), max(end // TILE_TOKENS - 1, 0))
        found = [each[:, tiles].ravel() for each in self.key_norms]
        joined = np.concatenate(found) if found else np.empty(0)
        return float(joined.mean()) if len(joined) else float("nan")

    def outputs_between(self, begin: int, end: int) -> float:
        """The mean over layers of the outputs' errors at positions begin .. end - 1; nan without any."""
        spans = [(places >= begin) & (places < end) for places in self.places]
        if not any(span.any() for span in spans):
            return float("nan")
        wrong, size = (
            np.concatenate([each[:, span] for each, span in zip(found, spans, strict=True)], axis=1)
            for found in (self.outputs, self.sizes)
        )
        return float(np.mean(_ratio(wrong, size)))

    def spreads(self) -> tuple[float, float]:
        """The mean spread of tokens' norms and the mean spread of channels over all tiles."""
        return float(np.concatenate(self.token_spread).mean()), float(np.concatenate(self.channel_spread).mean())

    def summary(self) -> dict[str, float] | None:
        """The means of the tokens' norm errors, of the worst 5 % of them, of the tiles' and the outputs' errors, and of shares.

        None if there are no tiles.
        """
        if not self.keys:
            return None
        norms = np.concatenate([each.ravel() for each in self.key_norms])
        return {
            "key_norm": float(norms.mean()),
            "key_norm_worst": _worst(norms),
            "keys": float(np.concatenate([each.ravel() for each in self.keys]).mean()),
            "values": float(np.concatenate([each.ravel() for each in self.values]).mean()),
            "outputs": float(np.mean(self.outputs_by_layer())),
            "magnitude": float(np.mean(self.magnitude)),
            "worst_keys": float(np.mean(self.worst_keys)),
        }


@dataclass(frozen=True, kw_only=True)
class CacheErrors:
    """Errors of one cache over all texts; created by `read_texts`.

    static, accumulated: errors of tiles; empty for an engine that keeps such a cache itself, whose tiles cannot be read.
    scores: of each text, or piece of a text.
    """

    cache: ComparedCache
    static: TileErrors = field(default_factory=TileErrors)
    accumulated: TileErrors = field(default_factory=TileErrors)
    scores: list[TokenScores] = field(default_factory=list)

    def extend(self, others: CacheErrors, block: int) -> None:
        """Add the errors of other texts; block: as in `TokenScores.cut`."""
        self.static.extend(others.static)
        self.accumulated.extend(others.accumulated)
        for each in others.scores:
            self.scores.extend(each.cut(block))

    @property
    def tokens(self) -> int:
        """The number of tokens that are compared with the exact cache."""
        return sum(len(each.kl) for each in self.scores)

    @property
    def draws(self) -> int:
        """The number of independent draws to which these tokens belong."""
        return len({each.draw for each in self.scores})

    @property
    def top1(self) -> float:
        """The share of tokens with the exact cache's most probable token."""
        return float(np.concatenate([each.agreed for each in self.scores]).mean())

    def kl(self, begin: int = 0, end: int | None = None) -> list[Doubles]:
        """The divergences of each draw's tokens, of those at positions begin .. end - 1; draws without any are left out."""
        found: dict[int, list[Doubles]] = {}
        for each in self.scores:
            span = slice(max(begin - each.begin, 0), None if end is None else max(end - each.begin, 0))
            if len(each.kl[span]):
                found.setdefault(each.draw, []).append(each.kl[span])
        return [np.concatenate(found[draw]) for draw in sorted(found)]

    def divergence(self, seed: int = 0) -> tuple[Estimate, Estimate]:
        """The mean KL per token, and that of the worst 5 % of tokens, with bootstrap intervals over the draws."""
        draws = self.kl()
        return mean_over(draws, seed), intervals.bootstrap(intervals.worst_mean(draws), len(draws), seed)

    def more_divergence(self, other: CacheErrors, seed: int = 0) -> Estimate:
        """The mean KL per token minus that of another cache on the same texts, in nats."""
        ours, theirs = self.kl(), other.kl()
        counts = [len(each) for each in ours]
        assert counts == [len(each) for each in theirs]
        above = [float(a.sum() - b.sum()) for a, b in zip(ours, theirs, strict=True)]
        return mean_of(above, counts, seed)

    def perplexity(self, seed: int = 0) -> Estimate:
        """The perplexity of these tokens over this cache."""
        return mean_over(self._by_draw("nats"), seed).map(np.exp)

    def exact_perplexity(self, seed: int = 0) -> Estimate:
        """The perplexity of these tokens over the exact cache."""
        return mean_over(self._by_draw("exact_nats"), seed).map(np.exp)

    def more_nats(self, seed: int = 0) -> Estimate:
        """The nats per token over this cache minus those over the exact one."""
        pairs = zip(self._by_draw("nats"), self._by_draw("exact_nats"), strict=True)
        return mean_over([ours - exact for ours, exact in pairs], seed)

    def _by_draw(self, name: str) -> list[Doubles]:
        found: dict[int, list[Doubles]] = {}
        for each in self.scores:
            found.setdefault(each.draw, []).append(getattr(each, name))
        return [np.concatenate(found[draw]) for draw in sorted(found)]


def mean_over(draws: Sequence[Doubles], seed: int = 0) -> Estimate:
    """The mean over all tokens, with a bootstrap interval over the draws."""
    return mean_of([float(each.sum()) for each in draws], [len(each) for each in draws], seed)


def _worst(errors: Floats) -> float:
    """The mean of the worst 5 %."""
    descending = np.sort(errors.ravel())[::-1]
    return float(descending[: max(1, round(WORST_SHARE * len(descending)))].mean())


def _ratio(wrong: Doubles, size: Doubles) -> list[float]:
    """The summed errors over the summed magnitudes of each layer [layers, tokens]."""
    found: list[float] = (wrong.sum(axis=1) / size.sum(axis=1)).tolist()
    return found


def _spread(x: Floats) -> Floats:
    """Standard deviation over mean, along the last axis."""
    spread: Floats = x.std(axis=-1) / np.maximum(x.mean(axis=-1), np.finfo(np.float64).tiny)
    return spread.ravel()


def _relative(x: Floats, stored: Floats) -> Floats:
    """Relative error of each tile [..., tokens, D], by Frobenius norms."""
    wrong: Floats = np.linalg.norm(x - stored, axis=(-2, -1)) / np.linalg.norm(x, axis=(-2, -1))
    return wrong
