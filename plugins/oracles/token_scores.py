"""Defines TokenScores in numpy. The products are in float64; `plugins/ops/token_scores.py` declares the arguments.

Source: SnapKV (arXiv 2404.14469), R-KV (arXiv 2505.24133).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.oracles.decoded_keys import decoded_keys
from enginewright.plugins.oracles.window_probabilities import Doubles, Floats, logits_of, softmax, stored_keys

BEFORE, CAUSAL = 0, 1
MAX_LOGIT, MEAN, MAX = 0, 1, 2


def grouped(logits: Doubles, sinks: Doubles | None, group: int) -> Doubles:
    """The probabilities [n] of a group of query heads as one, from logits [heads, n]."""
    if group == MAX_LOGIT:
        return softmax(logits.max(axis=0), None if sinks is None else sinks.max())
    probabilities = softmax(logits, sinks)
    joined: Doubles = probabilities.mean(axis=0) if group == MEAN else probabilities.max(axis=0)
    return joined


def similarity(keys: Doubles, threshold: float) -> Doubles:
    """The redundancy [n] of keys [n, D]."""
    units = keys / (np.linalg.norm(keys, axis=1, keepdims=True) + 1e-8)
    cosines = units @ units.T
    np.fill_diagonal(cosines, 0.0)
    above = cosines > threshold
    latest = np.where(above.any(axis=1), len(keys) - 1 - above[:, ::-1].argmax(axis=1), 0)
    cosines[np.arange(len(keys)), latest] = 0.0
    return softmax(cosines.mean(axis=0))


def token_scores(
    ring: Floats,
    tiles: NDArray[np.int8],
    slots: NDArray[np.int32],
    kv_lens: NDArray[np.int32],
    tile_table: NDArray[np.int32],
    last_positions: NDArray[np.int64],
    sinks: NDArray[np.float32] | None = None,
    exact: NDArray[np.float16] | None = None,
    encoded_lens: NDArray[np.int32] | None = None,
    *,
    layer: int,
    kv_heads: int,
    scale: float,
    window: int,
    softcap: float = 0.0,
    scope: int = BEFORE,
    group: int = MAX_LOGIT,
    redundancy: int = 0,
    threshold: float = 0.5,
    kv_bits: int = 16,
    k_bits: int = 0,
    v_bits: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Importance [B, kv_heads, 128 M], and redundancy of that shape or empty."""
    _, query_heads, entries, head_dim = ring.shape
    each = query_heads // kv_heads
    shape = (len(slots), kv_heads, tile_table.shape[3] * 128)
    importance, similar = np.zeros(shape, np.float32), np.zeros((*shape[:2], shape[2] * redundancy), np.float32)
    for row, head in np.ndindex(shape[:2]):
        stored = int(kv_lens[layer, row, head])
        if stored <= window:
            continue
        ids = tile_table[layer, row, head]
        if exact is None or encoded_lens is None:
            keys = stored_keys(tiles, ids, stored, head_dim, kv_bits)
        else:
            encoded = int(encoded_lens[0, layer, row, head])
            keys = decoded_keys(tiles, exact[slots[row], head], ids, stored, encoded, (k_bits, v_bits))
        heads = slice(head * each, (head + 1) * each)
        extra = None if sinks is None else sinks[heads].astype(np.float64)
        scored = stored - window if scope == BEFORE else stored
        total = np.zeros(scored)
        for t in range(window):
            queries = ring[slots[row], heads, (last_positions[row] - window + 1 + t) % entries]
            seen = stored - window if scope == BEFORE else stored - window + 1 + t
            total[:seen] += grouped(logits_of(queries, keys[:seen], scale, softcap), extra, group)
        importance[row, head, :scored] = total / window if scope == BEFORE else total
        if redundancy:
            similar[row, head, :scored] = similarity(keys, threshold)[:scored]
    return importance, similar
