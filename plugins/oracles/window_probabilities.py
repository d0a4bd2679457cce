"""The attention probabilities of single queries in numpy, for the ops of cache policies, and the tokens of a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.plugins.oracles.paged_attention import tile_views

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]


def stored_keys(tiles: NDArray[np.int8], ids: NDArray[np.int32], count: int, head_dim: int, kv_bits: int) -> Doubles:
    """The first `count` keys [count, head_dim] of the tiles `ids`, in token order."""
    value_dim = tiles.shape[1] * 8 // (TILE_TOKENS * kv_bits) - head_dim
    keys, _ = tile_views(tiles, head_dim, value_dim, kv_bits)
    used = ids[: -(-count // TILE_TOKENS)]
    in_order: Doubles = keys[used].transpose(0, 1, 3, 2).reshape(-1, head_dim)[:count].astype(np.float64)
    return in_order


def logits_of(queries: Floats, keys: Doubles, scale: float, softcap: float) -> Doubles:
    """Logits [heads, n] of the queries [heads, D] of one token with keys [n, D], capped as attention caps them."""
    logits: Doubles = queries.astype(np.float64) @ keys.T * scale
    return softcap * np.tanh(logits / softcap) if softcap > 0 else logits


def softmax(logits: Doubles, sinks: Doubles | None = None) -> Doubles:
    """Softmax over the last axis, in which an extra logit of each row takes part and has no place in the result."""
    with_sinks = logits if sinks is None else np.concatenate([logits, sinks[..., None]], axis=-1)
    weights = np.exp(with_sinks - with_sinks.max(axis=-1, keepdims=True))
    probabilities: Doubles = weights / weights.sum(axis=-1, keepdims=True)
    return probabilities[..., : logits.shape[-1]]
