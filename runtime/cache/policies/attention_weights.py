"""Attention of a request's newest queries over the tokens that a layer has stored: logits, and weights of a causal softmax.

Arrays are of one request and layer. Halves are widened to float32 before they are multiplied; float64 stays float64.
Queries and keys have their RoPE, so a token's place in the cache plays no part but for causality.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.errors import RequestError

Floats = NDArray[np.floating[Any]]


def widen(values: Floats) -> Floats:
    """Return the values as float32, or as float64 where they are."""
    return np.asarray(values, np.result_type(values, np.float32))


def check_scores(scores: Floats, where: str) -> None:
    """Raise RequestError where a score is NaN, which has no place in an order."""
    if np.isnan(scores).any():
        raise RequestError(
            f"{where}: got scores with NaN, expected numbers or infinity; the model computed no number for a key or a query, "
            "see whether its logits are finite"
        )


def attention_logits(queries: Floats, keys: Floats, *, scale: float | None = None, softcap: float = 0.0) -> Floats:
    """Return the logits of the newest queries over all keys, [H, G, w, n]; KV head h serves the query heads hG to hG + G - 1.

    queries: [Hq, w, D], of the last w of the n tokens.
    keys: [H, n, D], where Hq = H G.
    scale: of the products; None for 1 / sqrt(D).
    softcap: c of c tanh(logit / c); 0 for none.

    Raises:
        ValueError: the arrays do not fit each other.
    """
    queries, keys = widen(queries), widen(keys)
    heads, held, depth = keys.shape
    if queries.shape[0] % heads or queries.shape[2] != depth or queries.shape[1] > held:
        raise ValueError(
            f"attention_logits: got queries {queries.shape} and keys {keys.shape}, expected [H G, w, D] and [H, n, D] with "
            "w <= n"
        )
    grouped = queries.reshape(heads, -1, depth)  # [H, G w, D]: one product a head
    logits = grouped @ keys.swapaxes(1, 2) * (depth**-0.5 if scale is None else scale)
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    return logits.reshape(heads, -1, queries.shape[1], held).astype(keys.dtype, copy=False)


def softmax(logits: Floats, sinks: Floats | None = None) -> Floats:
    """Return the softmax over the last axis; -inf has the weight 0.

    sinks: logits of one more key each, which takes weight and is not in the result; they broadcast to [..., 1].
    """
    top = logits.max(axis=-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks)
    weights = np.exp(logits - top)
    total = weights.sum(axis=-1, keepdims=True)
    shares: Floats = weights / (total if sinks is None else total + np.exp(sinks - top))
    return shares


def causal_weights(
    queries: Floats, keys: Floats, *, scale: float | None = None, softcap: float = 0.0, sinks: Floats | None = None
) -> Floats:
    """Return the attention weights of the last w tokens' queries, each over the tokens up to its own, [H, G, w, n].

    queries, keys, scale, softcap: those of `attention_logits`.
    sinks: [Hq], the logit of each query head's sink.
    """
    logits = attention_logits(queries, keys, scale=scale, softcap=softcap)
    heads, group, window, held = logits.shape
    later = np.arange(held) > np.arange(held - window, held)[:, None]
    columns = None if sinks is None else widen(sinks).reshape(heads, group, 1, 1)
    return softmax(np.where(later, -np.inf, logits), columns)
