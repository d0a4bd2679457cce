"""Defines MarkTokens in numpy.

Source: H2O (arXiv 2306.14048) for the mass, LazyEviction (arXiv 2506.15969) for the recurrence; given values are for gates
such as those of TRIM-KV (arXiv 2512.03324).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.oracles.window_probabilities import Doubles, Floats, logits_of, softmax, stored_keys

MASS, RECURRENCE, GIVEN = 0, 1, 2


def update_recurrence(marks: NDArray[np.float32], probabilities: Doubles, now: int, alpha: float) -> None:
    """Update last hits and intervals, marks [2, n], by the largest probabilities [n] of a query at position `now`."""
    hit = probabilities >= np.float32(alpha)
    marks[1] = np.where(hit, np.maximum(marks[1], now - marks[0]), marks[1])
    marks[0] = np.where(hit, now, marks[0])


def mark_tokens(
    query: Floats,
    tiles: NDArray[np.int8],
    query_starts: NDArray[np.int32],
    kv_lens: NDArray[np.int32],
    tile_table: NDArray[np.int32],
    position_ids: NDArray[np.int64],
    marks: NDArray[np.float32],
    sinks: NDArray[np.float32] | None = None,
    values: NDArray[np.float32] | None = None,
    *,
    layer: int,
    kv_heads: int,
    scale: float,
    kind: int,
    softcap: float = 0.0,
    alpha: float = 1e-4,
    kv_bits: int = 16,
) -> NDArray[np.float32]:
    """The marks after the new queries; `plugins/ops/mark_tokens.py` declares the arguments."""
    marks_out, head_dim, each = marks.copy(), query.shape[2], query.shape[1] // kv_heads
    for row, head in np.ndindex(len(query_starts) - 1, kv_heads):
        start, end = query_starts[row : row + 2].tolist()
        held, heads = int(kv_lens[layer, row, head]), slice(head * each, (head + 1) * each)
        total = held + end - start
        if end == start:
            continue
        ids = tile_table[layer, row, head, : -(-total // 128)]
        if kind == GIVEN:
            assert values is not None
            places = np.arange(held, total)
            marks_out[ids[places // 128], 0, places % 128] = values[start:end, head]
            continue
        keys = stored_keys(tiles, ids, total, head_dim, kv_bits)
        extra = None if sinks is None else sinks[heads].astype(np.float64)
        flat = marks_out[ids].transpose(1, 0, 2).reshape(marks.shape[1], -1)
        flat[:, held:total] = 0
        if kind == RECURRENCE:
            flat[0, held:total] = position_ids[start:end]
        for token in range(start, end):
            seen = held + token - start + 1
            weights = softmax(logits_of(query[token, heads], keys[:seen], scale, softcap), extra)
            if kind == MASS:
                flat[0, :seen] += weights.mean(axis=0)
            else:
                update_recurrence(flat[:, :seen], weights.max(axis=0), int(position_ids[token]), alpha)
        marks_out[ids] = flat.reshape(marks.shape[1], -1, 128).transpose(1, 0, 2)
    return marks_out
