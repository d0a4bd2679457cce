"""Chooses one token per row from its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.library import LibraryError, argmax_rows
from enginewright.runtime.sampling import Sampling

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_DRAWS = 64
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities under the model's own logits: of the chosen token, and (token id, value) of the top ones."""

    chosen: float
    top: tuple[tuple[int, float], ...]


class Draws:
    """Uniform numbers in [0, 1) of one request: number i depends on the seed and on i alone (Philox counters)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._block = -1
        self._numbers: Doubles = np.empty(0)

    def __getitem__(self, index: int) -> float:
        block, offset = divmod(index, _DRAWS)
        if block != self._block:
            philox = np.random.Philox(key=self._seed, counter=block * _DRAWS // 4)  # four numbers a counter
            self._numbers, self._block = np.random.Generator(philox).random(_DRAWS), block
        return float(self._numbers[offset])


class Sampled(Protocol):
    """What the sampler needs to know of a row's request."""

    sampling: Sampling
    is_plain_greedy: bool
    draws: Draws
    tokens: Ints
    prompt_tokens: int
    generated: list[int]

    @property
    def length(self) -> int:
        """Of prompt and output."""
        ...


def choose(logits: Floats, requests: Sequence[Sampled]) -> tuple[Ints, list[Logprobs | None]]:
    """Return the next token of each row and its log-probabilities where asked for; overwrites `logits`."""
    if all(request.is_plain_greedy for request in requests):
        return _largest(logits), [None] * len(requests)
    raw = [
        _log_softmax(row) if r.sampling.logprobs is not None else None for row, r in zip(logits, requests, strict=True)
    ]
    for row, request in zip(logits, requests, strict=True):
        if request.sampling.has_penalties:
            _penalise(row, request)
    tokens = _largest(logits)
    drawn = [i for i, request in enumerate(requests) if request.sampling.temperature > 0]
    for i in drawn:
        tokens[i] = _draw(logits[i], requests[i].sampling, requests[i].draws[len(requests[i].generated)])
    logprobs = [
        None if values is None else _report(values, int(token), request.sampling.logprobs or 0)
        for values, token, request in zip(raw, tokens, requests, strict=True)
    ]
    return tokens, logprobs


def _largest(logits: Floats) -> Ints:
    """Return each row's most probable token, the lowest id among equals."""
    try:
        return argmax_rows(logits)[0]
    except LibraryError:
        index: Ints = logits.argmax(axis=1)
        return index


def _penalise(row: Floats, request: Sampled) -> None:
    """Apply bias and penalties to `row` in place."""
    sampling = request.sampling
    for token, bias in sampling.logit_bias.items():
        row[token] += bias
    if sampling.repetition_penalty != 1.0:
        seen = request.tokens[: request.length]  # repeats are harmless: every value is read before any is written
        values = row[seen]
        row[seen] = np.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        tokens, counts = np.unique(request.tokens[request.prompt_tokens : request.length], return_counts=True)
        row[tokens] -= (sampling.presence_penalty + sampling.frequency_penalty * counts).astype(np.float32)


def _draw(row: Floats, sampling: Sampling, uniform: float) -> int:
    """Return the token at `uniform` of the cumulated probabilities that the truncations leave."""
    if not sampling.top_k and sampling.top_p == 1.0 and not sampling.min_p:
        return _draw_from_all(row, sampling.temperature, uniform)
    ids, weights, mass = _candidates(row, sampling)
    kept = len(ids)
    if sampling.top_k and sampling.top_k < kept:
        kept = int(np.searchsorted(-weights, -weights[sampling.top_k - 1], side="right"))  # ties at the edge stay
    cumulated = np.cumsum(weights[:kept])
    if sampling.top_p < 1.0:
        mass = float(cumulated[-1]) if sampling.top_k else mass
        kept = min(kept, int(np.searchsorted(cumulated, sampling.top_p * mass)) + 1)
    if sampling.min_p:
        kept = min(kept, int(np.searchsorted(-weights, -sampling.min_p, side="right")))
    return int(ids[np.searchsorted(cumulated[: kept - 1], uniform * cumulated[kept - 1], side="right")])


def _draw_from_all(row: Floats, temperature: float, uniform: float) -> int:
    """Return the token at `uniform` of all cumulated probabilities: first the block, then the token in it."""
    weights = _weights(row, float(row.max()), temperature)
    edges = np.arange(0, len(row), _BLOCK)
    cumulated = np.cumsum(np.add.reduceat(weights, edges, dtype=np.float64))
    target = uniform * cumulated[-1]
    block = int(np.searchsorted(cumulated[:-1], target, side="right"))
    before = cumulated[block - 1] if block else 0.0
    inside = before + np.cumsum(weights[edges[block] : edges[block] + _BLOCK], dtype=np.float64)
    return int(edges[block]) + int(np.searchsorted(inside[:-1], target, side="right"))


def _candidates(row: Floats, sampling: Sampling) -> tuple[Ints, Doubles, float]:
    """Return every token that the truncations can keep, and usually few more, most probable first.

    With them their weights exp((logit - largest) / temperature), and the weight of the whole vocabulary where top_p acts
    on it.
    """
    top, mass, floor = float(row.max()), 0.0, -np.inf
    if sampling.top_k:
        floor = _kth_floor(row, sampling.top_k)
    elif sampling.top_p < 1.0:
        # tokens rarer than (1 - top_p) / V weigh less than 1 - top_p together, so the others alone reach top_p
        mass = float(_weights(row, top, sampling.temperature).sum(dtype=np.float64))
        floor = top + sampling.temperature * float(np.log((1.0 - sampling.top_p) * mass / len(row)))
    if sampling.min_p:
        floor = max(floor, top + sampling.temperature * float(np.log(sampling.min_p)))
    ids = np.flatnonzero(row >= floor - 1e-5 * (1.0 + abs(floor)) if np.isfinite(floor) else row > -np.inf)
    ids = ids[np.argsort(-row[ids], kind="stable")]
    return ids, np.exp((row[ids].astype(np.float64) - top) / sampling.temperature), mass


def _weights(row: Floats, top: float, temperature: float) -> Floats:
    weights: Floats = np.exp((row - np.float32(top)) * np.float32(1.0 / temperature))
    return weights


def _kth_floor(row: Floats, k: int) -> float:
    """Return a lower bound of the k-th largest value: k blocks have a maximum at least as large."""
    blocks = len(row) // _BLOCK
    if k >= len(row):
        return -np.inf
    if blocks < k:
        return float(np.partition(row, len(row) - k)[len(row) - k])
    maxima = row[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
    return float(np.partition(maxima, blocks - k)[blocks - k])


def _log_softmax(row: Floats) -> Floats:
    top = row.max()
    values: Floats = row - (top + np.log(np.exp(row - top).sum(dtype=np.float64)).astype(np.float32))
    return values


def _report(values: Floats, token: int, top: int) -> Logprobs:
    """Return the chosen token's log-probability and the `top` largest ones."""
    pairs: list[tuple[int, float]] = []
    if top:
        ids = np.flatnonzero(values >= _kth_floor(values, top))
        ids = ids[np.argsort(-values[ids], kind="stable")][:top]
        pairs = list(zip(ids.tolist(), values[ids].tolist(), strict=True))
    return Logprobs(float(values[token]), tuple(pairs))
