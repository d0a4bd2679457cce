"""Scores of the tokens that a request has stored: a token with a larger score is more worth keeping.

Arrays are of one request and layer: keys [H, n, D] of its n stored tokens, queries [Hq, w, D] of the last w of them, with
Hq = H G. Scores are of the n - w tokens before that window, which always stays. They are float32, or float64 where the
inputs are.

Sources: SnapKV, arXiv 2404.14469; R-KV, arXiv 2505.24133; TOVA, arXiv 2401.06104; H2O, arXiv 2306.14048; StreamingLLM, arXiv
2309.17453; TRIM-KV, arXiv 2512.03324; LazyEviction, arXiv 2506.15969.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.cache.policies.attention_weights import (
    Floats,
    attention_logits,
    causal_weights,
    softmax,
    widen,
)

Ints = NDArray[np.integer[Any]]

TINY = 1e-8  # keeps the direction of a key of 0 a number
SIMILAR = 0.5  # cosine above which a later token makes an earlier one redundant, unless it is the last such one
BLOCK = 256  # rows of cosines in memory at a time


def importance_decode(queries: Floats, keys: Floats, kernel: int = 7) -> Floats:
    """Return the attention of a window of decoded tokens on the tokens before it, [H, n - w].

    The logits' maximum over the group, a softmax over the tokens before the window, the mean over the window, and the
    maximum of `kernel` neighbours.

    Raises:
        ValueError: `kernel` is even, or the arrays do not fit each other.
    """
    return pool_decode(attention_logits(queries, keys), kernel)


def pool_decode(logits: Floats, kernel: int, sinks: Floats | None = None) -> Floats:
    """Return the scores of `importance_decode` from the logits [H, G, w, n] of the window, [H, n - w].

    sinks: [H, G], the sinks' logits, of which the group's maximum takes weight.
    """
    window = logits.shape[2]
    before = logits[..., : logits.shape[3] - window].max(axis=1)
    if not before.shape[-1]:
        return np.zeros(before[:, 0].shape, before.dtype)
    columns = None if sinks is None else sinks.max(axis=1)[:, None, None]
    pooled = largest_neighbour(softmax(before, columns).mean(axis=1), kernel)
    return pooled


def importance_prompt(queries: Floats, keys: Floats, kernel: int = 5) -> Floats:
    """Return the attention of a prompt's last tokens on the tokens before them, [H, n - w].

    The sum over the window of the causal weights, the mean over the group, and the mean of `kernel` neighbours, where
    places outside count as 0.

    Raises:
        ValueError: `kernel` is even, or the arrays do not fit each other.
    """
    return pool_prompt(causal_weights(queries, keys), kernel)


def pool_prompt(weights: Floats, kernel: int) -> Floats:
    """Return the scores of `importance_prompt` from the causal weights [H, G, w, n] of the window, [H, n - w]."""
    window = weights.shape[2]
    sums = weights[..., : weights.shape[3] - window].sum(axis=2).mean(axis=1)
    pooled = mean_of_neighbours(sums, kernel)
    return pooled


def redundancy(keys: Floats, window: int) -> Floats:
    """Return how much the key of each token before the window is like the others' keys, [H, n - w]; 1 is their sum over all n.

    Of each token its cosines with the others, without the one with the last token that is similar to it (or with the first
    token, where none is similar); the mean of these over all tokens, and a softmax over all n tokens.
    """
    keys = widen(keys)
    units = keys / (np.linalg.norm(keys, axis=-1, keepdims=True) + keys.dtype.type(TINY))
    held = keys.shape[1]
    means = np.zeros(keys.shape[:2], keys.dtype)
    for head, unit in enumerate(units):
        for first in range(0, held, BLOCK):
            cosines = unit[first : first + BLOCK] @ unit.T
            rows = np.arange(len(cosines))
            cosines[rows, first + rows] = 0
            cosines[rows, _last_similar(cosines)] = 0
            means[head] += cosines.sum(axis=0)
    return softmax(means / max(held, 1))[:, : held - window] if held else means


def _last_similar(cosines: Floats) -> NDArray[np.int64]:
    """The largest column above SIMILAR of each row; 0 where there is none."""
    similar = cosines > SIMILAR
    last = cosines.shape[1] - 1 - similar[:, ::-1].argmax(axis=1)
    return np.where(similar.any(axis=1), last, 0)


def rkv(queries: Floats, keys: Floats, mix: float = 0.1, kernel: int = 7) -> Floats:
    """Return mix * importance - (1 - mix) * redundancy, [H, n - w]; the importance is that of decoded tokens."""
    importance = importance_decode(queries, keys, kernel)
    return importance.dtype.type(mix) * importance - importance.dtype.type(1 - mix) * redundancy(keys, queries.shape[1])


def tova(queries: Floats, keys: Floats) -> Floats:
    """Return the last query's weights averaged over all query heads, the same for each head, [H, n - w]."""
    weights = causal_weights(queries[:, -1:], keys)
    mean = weights.mean(axis=(0, 1, 2))[: keys.shape[1] - queries.shape[1]]
    return np.broadcast_to(mean, (keys.shape[0], len(mean)))


def attention_mass(queries: Floats, keys: Floats) -> Floats:
    """Return the attention that each stored token gets from the queries, [H, n]: their sum, and the mean over the group.

    H2O adds this up over all queries of a request.
    """
    mass: Floats = causal_weights(queries, keys).sum(axis=2).mean(axis=1)
    return mass


def heavy_hitters(mass: Floats, positions: Ints, now: int, window: int, *, normalise: bool = False) -> Floats:
    """Return the scores of one head by the attention that its tokens have got so far, [n - w].

    mass: [n], the sums of `attention_mass`.
    positions: [n], of the stored tokens in the request.
    now: the number of tokens processed.
    normalise: whether the sum is divided by the number of queries that could see the token.
    """
    kept = mass[: len(mass) - window]
    return kept / (now - positions[: len(kept)]).astype(mass.dtype) if normalise else kept


def streaming(positions: Ints, window: int, sinks: int = 4) -> Floats:
    """Return the scores by which the first `sinks` tokens of the request and its newest ones stay, float32 [..., n - w]."""
    before = positions[..., : positions.shape[-1] - window]
    return keep_sinks(before.astype(np.float32), before, sinks)


def keep_sinks(scores: Floats, positions: Ints, sinks: int) -> Floats:
    """Return the scores with infinity for the first `sinks` tokens of the request, which so stay."""
    return np.where(positions < sinks, scores.dtype.type(np.inf), scores)


def random_scores(count: int, seed: Sequence[int]) -> Floats:
    """Return `count` random scores, float32; the same seed gives the same ones."""
    return np.random.default_rng(seed).random(count, dtype=np.float32)


def retention(log_beta: Floats, positions: Ints, now: int) -> Floats:
    """Return (now - position) * log beta, the logarithm of what a gate leaves of each token.

    log_beta: at most 0, given once to each token.
    positions: of the tokens in the request; they broadcast to log_beta.
    now: the number of tokens processed, and 1.
    """
    log_beta = widen(log_beta)
    return (now - np.asarray(positions)).astype(log_beta.dtype) * log_beta


def lazy_update(
    last_hit: Ints, interval: Ints, probabilities: Floats, now: int, alpha: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each token's last hit and longest interval between hits after step `now`.

    A new token has its own step as the last hit, and the interval 0.

    probabilities: the group's largest weight of the newest query; a hit is at least `alpha`.
    """
    last_hit, interval = np.asarray(last_hit, np.int64), np.asarray(interval, np.int64)
    hits = np.asarray(probabilities) >= alpha
    return np.where(hits, now, last_hit), np.where(hits, np.maximum(interval, now - last_hit), interval)


def lazy_score(last_hit: Ints, interval: Ints, now: int) -> Floats:
    """Return 2 sigma(-(now - last hit) / interval) + 2 sigma(-1 / interval), float64; 0 for a token that never came back."""
    returned = np.asarray(interval) > 0
    spans = np.where(returned, interval, 1).astype(np.float64)
    idle = (now - np.asarray(last_hit)) / spans
    return np.where(returned, 2 * _sigmoid(-idle) + 2 * _sigmoid(-1 / spans), 0.0)


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(values / 2))  # without overflow


def largest_neighbour(values: Floats, kernel: int) -> Floats:
    """Return of each value [..., n] the largest of the `kernel` values around it."""
    return _around(values, kernel, -np.inf, np.maximum)


def mean_of_neighbours(values: Floats, kernel: int) -> Floats:
    """Return of each value [..., n] the mean of the `kernel` values around it, where places outside count as 0."""
    return _around(values, kernel, 0.0, np.add) / values.dtype.type(kernel)


def _around(values: Floats, kernel: int, outside: float, join: np.ufunc) -> Floats:
    """The `kernel` values around each one, joined; places outside have the value `outside`."""
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel: got {kernel}, expected an odd number from 1 up")
    sides = [(0, 0)] * (values.ndim - 1) + [(kernel // 2, kernel // 2)]
    padded, count = np.pad(values, sides, constant_values=outside), values.shape[-1]
    found: Floats = padded[..., :count].copy()
    for place in range(1, kernel):
        join(found, padded[..., place : place + count], out=found)
    return found
