"""Builds the caches of the ops of cache policies: pools of tiles, tables and lengths."""

from __future__ import annotations

import numpy as np

from enginewright.plugins.ops.tiles import TILE_TOKENS, tile_bytes
from enginewright.plugins.oracles.paged_attention import tile_views


def pool_of(keys: np.ndarray, value_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """A float32 pool of the keys [heads, n, D] of one row, and the table [1, 1, heads, M] of its tiles; values are zeros."""
    heads, n, dim = keys.shape
    width = -(-n // TILE_TOKENS)
    pool = np.zeros((heads * width, tile_bytes(dim, value_dim, 32)), np.int8)
    stored, _ = tile_views(pool, dim, value_dim, 32)
    padded = np.zeros((heads, width * TILE_TOKENS, dim))
    padded[:, :n] = keys
    stored[:] = padded.reshape(heads * width, -1, 16, dim).transpose(0, 1, 3, 2)
    return pool, np.arange(heads * width, dtype=np.int32).reshape(1, 1, heads, width)
