"""The numpy definition of PagedAttention, which `plugins/ops/paged_attention.py` declares, and its tile layout.

A tile holds TILE_TOKENS tokens of one KV head: keys as [TILE_TOKENS / 16][head_dim][16], so that the numbers of sixteen
tokens in one dimension are neighbours, then values as [TILE_TOKENS][value_dim].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.ops.tiles import TILE_TOKENS

BLOCK_TOKENS = 16
HALF_MAX = 65504.0

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int32]


def tile_views(tiles: NDArray[np.int8], head_dim: int, value_dim: int, kv_bits: int) -> tuple[Floats, Floats]:
    """Keys [N, TILE_TOKENS / 16, head_dim, 16] and values [N, TILE_TOKENS, value_dim] as views of the pool."""
    elements: Floats = tiles.view(np.float16 if kv_bits == 16 else np.float32)
    split = TILE_TOKENS * head_dim
    keys = elements[:, :split].reshape(-1, TILE_TOKENS // BLOCK_TOKENS, head_dim, BLOCK_TOKENS)
    values = elements[:, split:].reshape(-1, TILE_TOKENS, value_dim)
    return keys, values


def _stored(x: Floats, kv_bits: int) -> Floats:
    """The numbers as the cache stores them; halves round to nearest even, and those out of range become the largest."""
    return np.clip(x, -HALF_MAX, HALF_MAX).astype(np.float16) if kv_bits == 16 else x.astype(np.float32)


def _attend(
    query: Floats, keys: Floats, values: Floats, scale: float, softcap: float, sink: float | None
) -> NDArray[np.float64]:
    """Attention of one query[D] over its visible keys[n, D] and values[n, Dv], in float64."""
    logits = keys.astype(np.float64) @ query.astype(np.float64) * scale
    if softcap > 0:
        logits = softcap * np.tanh(logits / softcap)
    maximum = logits.max() if sink is None else max(logits.max(), sink)
    weights = np.exp(logits - maximum)
    total = weights.sum() + (0.0 if sink is None else np.exp(sink - maximum))
    mixed: NDArray[np.float64] = weights @ values.astype(np.float64) / total
    return mixed


def paged_attention(
    query: Floats,
    key: Floats,
    value: Floats,
    tiles: NDArray[np.int8],
    query_starts: Ints,
    kv_lens: Ints,
    tile_table: Ints,
    sinks: NDArray[np.float32] | None = None,
    *,
    layer: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    kv_bits: int = 16,
) -> tuple[Floats, NDArray[np.int8]]:
    """Output [T, Hq, Dv], and the pool with the new tokens.

    `plugins/ops/paged_attention.py` declares the arguments' shapes and meaning.
    """
    _, query_heads, head_dim = query.shape
    kv_heads, value_dim = value.shape[1:]
    tiles_out = tiles.copy()
    keys, values = tile_views(tiles_out, head_dim, value_dim, kv_bits)
    new_keys, new_values = _stored(key, kv_bits), _stored(value, kv_bits)
    rows = [
        (range(start, end), row, head)
        for row, (start, end) in enumerate(zip(query_starts[:-1].tolist(), query_starts[1:].tolist(), strict=True))
        for head in range(kv_heads)
    ]
    for tokens, row, head in rows:  # all rows first: they may share tiles
        for index, token in enumerate(tokens, start=int(kv_lens[layer, row, head])):
            tile, slot = tile_table[layer, row, head, index // TILE_TOKENS], index % TILE_TOKENS
            keys[tile, slot // BLOCK_TOKENS, :, slot % BLOCK_TOKENS] = new_keys[token, head]
            values[tile, slot] = new_values[token, head]
    output = np.zeros((len(query), query_heads, value_dim), query.dtype)
    group = query_heads // kv_heads
    for tokens, row, head in rows:
        for index, token in enumerate(tokens, start=int(kv_lens[layer, row, head])):
            low = max(0, index + 1 - window) if window else 0
            span = range(low // TILE_TOKENS, index // TILE_TOKENS + 1)
            ids, seen = (
                tile_table[layer, row, head, span.start : span.stop],
                slice(low - span.start * TILE_TOKENS, None),
            )
            end = index + 1 - span.start * TILE_TOKENS
            k = keys[ids].transpose(0, 1, 3, 2).reshape(-1, head_dim)[seen][: end - seen.start]
            v = values[ids].reshape(-1, value_dim)[seen][: end - seen.start]
            for q in range(head * group, (head + 1) * group):
                sink = None if sinks is None else float(sinks[q])
                output[token, q] = _attend(query[token, q], k, v, scale, softcap, sink)
    return output, tiles_out
