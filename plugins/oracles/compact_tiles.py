"""Defines CompactTiles in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.oracles.paged_attention import BLOCK_TOKENS, tile_views


def compact_tiles(
    tiles: NDArray[np.int8],
    moves: NDArray[np.int32],
    marks: NDArray[np.float32] | None = None,
    *,
    head_dim: int,
    value_dim: int,
    kv_bits: int = 16,
) -> tuple[NDArray[np.int8], NDArray[np.float32] | None]:
    """The pool and the marks after the moves; `plugins/ops/compact_tiles.py` declares the arguments."""
    tiles_out = tiles.copy()
    marks_out = None if marks is None else marks.copy()
    bits = np.dtype(f"u{kv_bits // 8}")  # a move keeps bits, those of NaN as well
    keys, values = (view.view(bits) for view in tile_views(tiles_out, head_dim, value_dim, kv_bits))
    for tile, place, target, to in moves.tolist():
        block, inner = divmod(place, BLOCK_TOKENS)
        keys[target, to // BLOCK_TOKENS, :, to % BLOCK_TOKENS] = keys[tile, block, :, inner]
        values[target, to] = values[tile, place]
        if marks_out is not None:
            marks_out[target, :, to] = marks_out[tile, :, place]
    return tiles_out, marks_out
