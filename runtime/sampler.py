"""Chooses one token per row from its logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.sampling import Sampling
from enginewright.runtime.session import Outputs

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_DRAWS = 64
_BLOCK = 64
_FEW = 1024
_COLDEST = 1e-6


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


def choose(outputs: Outputs, requests: Sequence[Sampled]) -> tuple[Ints, list[Logprobs | None]]:
    """Return the next token of each row and its log-probabilities where asked for; overwrites the logits.

    A row whose logits are not finite gets -1.
    """
    tokens, logits = outputs.greedy.copy(), outputs.logits
    if all(request.is_plain_greedy for request in requests):
        return tokens, [None] * len(requests)
    raw = list(logits)
    for i, request in enumerate(requests):
        if request.sampling.has_penalties:
            raw[i] = logits[i].copy()
            _penalise(logits[i], request)
            tokens[i] = _largest(logits[i])
        if request.sampling.temperature > 0 and tokens[i] >= 0:
            tokens[i] = _draw(logits[i], request.sampling, request.draws[len(request.generated)])
    logprobs = [
        None if request.sampling.logprobs is None or token < 0 else _report(row, int(token), request.sampling.logprobs)
        for row, token, request in zip(raw, tokens, requests, strict=True)
    ]
    return tokens, logprobs


def _largest(row: Floats) -> int:
    """Return the most probable token, the lowest id among equals; -1 where it is not finite."""
    token = int(row.argmax())
    return token if math.isfinite(row[token]) else -1


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
    """Return the token at `uniform` of the cumulated probabilities that the truncations leave, in order of ids.

    Each truncation is a lowest logit or weight, found without sorting the vocabulary; tokens that equal it stay.
    """
    top = row.max()
    if np.isnan(top):
        return -1
    ids = np.flatnonzero(row >= _kth_largest(row, sampling.top_k)) if sampling.top_k else None
    values = row if ids is None else row[ids]
    weights: Floats = np.exp((values - top) / np.float32(max(sampling.temperature, _COLDEST)))
    cut = max(_mass_cut(weights, sampling.top_p) if sampling.top_p < 1.0 else 0.0, sampling.min_p)
    if cut > 0:
        kept = np.flatnonzero(weights >= np.float32(cut))
        weights, ids = weights[kept], kept if ids is None else ids[kept]
    index = _pick(weights, uniform)
    return index if ids is None else int(ids[index])


def _pick(weights: Floats, uniform: float) -> int:
    """Return the index at `uniform` of the cumulated weights: first the block, then the place in it."""
    edges = np.arange(0, len(weights), _BLOCK)
    cumulated = np.cumsum(np.add.reduceat(weights, edges), dtype=np.float64)
    target = uniform * cumulated[-1]
    block = int(np.searchsorted(cumulated[:-1], target, side="right"))
    before = cumulated[block - 1] if block else 0.0
    inside = before + np.cumsum(weights[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    return block * _BLOCK + int(np.searchsorted(inside[:-1], target, side="right"))


def _mass_cut(weights: Floats, share: float) -> float:
    """Return the weight down to which the largest weights reach `share` of their sum; the largest weight is 1.

    Narrows the weights among which the edge lies by halving their range of logarithms, then sorts the few left.
    """
    target = share * float(weights.sum())
    low, high, above = (1.0 - share) * float(weights.sum()) / len(weights), 1.0, 0.0
    around = weights[weights >= np.float32(low)]  # the others weigh less than 1 - share together
    while len(around) > _FEW and high > low * 1.001:
        middle = float(np.sqrt(low * high))
        upper = around[around >= np.float32(middle)]
        mass = float(upper.sum())
        if above + mass >= target:
            around, low = upper, middle
        else:
            around, high, above = around[around < np.float32(middle)], middle, above + mass
    descending = np.sort(around)[::-1]
    reached = int(np.searchsorted(above + np.cumsum(descending, dtype=np.float64), target))
    return float(descending[min(reached, len(descending) - 1)]) if len(descending) else low


def _kth_largest(row: Floats, k: int) -> float:
    """Return the k-th largest value: k blocks have a maximum at least as large as the k-th largest of those."""
    if k >= len(row):
        return -np.inf
    blocks = len(row) // _BLOCK
    if k <= blocks:
        maxima = row[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        row = row[row >= np.partition(maxima, blocks - k)[blocks - k]]
    return float(np.partition(row, len(row) - k)[len(row) - k])


def _report(row: Floats, token: int, top: int) -> Logprobs:
    """Return the log-softmax of `row` at `token` and at the `top` largest values."""
    largest = float(row.max())
    total = largest + float(np.log(np.exp(row - np.float32(largest)).sum()))
    pairs: list[tuple[int, float]] = []
    if top:
        ids = np.flatnonzero(row >= _kth_largest(row, top))
        ids = ids[np.argsort(-row[ids], kind="stable")][:top]
        pairs = [(i, float(row[i]) - total) for i in ids.tolist()]
    return Logprobs(float(row[token]) - total, tuple(pairs))
