"""Chooses the next token of each row from the row's logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.decoding.logits_processors import Floats, Ints, SampledRequest, penalise
from enginewright.runtime.requests.completion import Logprobs
from enginewright.runtime.requests.sampling import Sampling

_BLOCK = 64
_FEW = 1024
_COLDEST = 1e-6


def choose_tokens(outputs: Outputs, requests: Sequence[SampledRequest]) -> tuple[Ints, list[Logprobs | None]]:
    """Return the next token of each row, and its log-probabilities where the request asks for them.

    Overwrites the logits. A row whose logits are not finite gets the token -1.
    """
    tokens, logits = outputs.greedy.copy(), outputs.logits
    if all(request.is_plain_greedy for request in requests):
        return tokens, [None] * len(requests)
    raw = list(logits)
    for i, request in enumerate(requests):
        if request.sampling.has_penalties:
            raw[i] = logits[i].copy()
            penalise(logits[i], request)
            tokens[i] = _largest(logits[i])
        if request.sampling.temperature > 0 and tokens[i] >= 0:
            tokens[i] = _draw(logits[i], request.sampling, request.draws[len(request.generated)])
    logprobs = [
        None
        if request.sampling.logprobs is None or token < 0
        else _logprobs_of(row, int(token), request.sampling.logprobs)
        for row, token, request in zip(raw, tokens, requests, strict=True)
    ]
    return tokens, logprobs


def _largest(row: Floats) -> int:
    """Return the most probable token, the lowest id among equals; -1 where its logit is not finite."""
    token = int(row.argmax())
    return token if math.isfinite(row[token]) else -1


def _draw(row: Floats, sampling: Sampling, uniform: float) -> int:
    """Return the token at which the cumulated probabilities reach `uniform`, in order of ids; -1 where a logit is NaN.

    Only the tokens that the truncations leave count. Each truncation is a lowest logit or weight, found without sorting
    the vocabulary; tokens that equal it stay.
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
    """Return the index at which the cumulated weights reach `uniform` of their sum: first the block, then its element."""
    edges = np.arange(0, len(weights), _BLOCK)
    cumulated = np.cumsum(np.add.reduceat(weights, edges), dtype=np.float64)
    target = uniform * cumulated[-1]
    block = int(np.searchsorted(cumulated[:-1], target, side="right"))
    before = cumulated[block - 1] if block else 0.0
    inside = before + np.cumsum(weights[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    return block * _BLOCK + int(np.searchsorted(inside[:-1], target, side="right"))


def _mass_cut(weights: Floats, share: float) -> float:
    """Return the least of the largest weights that together reach `share` of the sum; the largest weight is 1.

    Narrows the range in which that weight lies by halving it on a logarithmic scale, then sorts the few weights left.
    """
    target = share * float(weights.sum())
    low, high, above = (1.0 - share) * float(weights.sum()) / len(weights), 1.0, 0.0
    around = weights[weights >= np.float32(low)]  # together, the others weigh less than 1 - share
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
    """Return the k-th largest value.

    With k or more blocks, it is no smaller than the k-th largest of the blocks' maxima, so smaller values are left out.
    """
    if k >= len(row):
        return -np.inf
    blocks = len(row) // _BLOCK
    if k <= blocks:
        maxima = row[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        row = row[row >= np.partition(maxima, blocks - k)[blocks - k]]
    return float(np.partition(row, len(row) - k)[len(row) - k])


def _logprobs_of(row: Floats, token: int, top: int) -> Logprobs:
    """Return the log-softmax of `row` at `token` and at the `top` largest values."""
    largest = float(row.max())
    total = largest + float(np.log(np.exp(row - np.float32(largest)).sum()))
    pairs: list[tuple[int, float]] = []
    if top:
        ids = np.flatnonzero(row >= _kth_largest(row, top))
        ids = ids[np.argsort(-row[ids], kind="stable")][:top]
        pairs = [(i, float(row[i]) - total) for i in ids.tolist()]
    return Logprobs(float(row[token]) - total, tuple(pairs))
