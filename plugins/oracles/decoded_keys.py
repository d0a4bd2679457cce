"""The keys of a cache of records in numpy, decoded and turned back, for the ops of cache policies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.plugins.oracles.kvarn import decode, from_record, hadamard
from enginewright.plugins.oracles.window_probabilities import Doubles

BLOCK_TOKENS = 16


def decoded_keys(
    records: NDArray[np.int8],
    exact: NDArray[np.float16],
    ids: NDArray[np.int32],
    stored: int,
    encoded: int,
    bits: tuple[int, int],
) -> Doubles:
    """The `stored` keys [stored, D] of one row and KV head, in token order, as they were before the cache turned them.

    records: int8 [N, record_bytes]. exact: the head's own tiles, [F, 2 * TILE_TOKENS * D]; tile i is number
        1 + (i - 1) % (F - 1), and the first one number 0. ids: the record of each tile.
    encoded: tokens in records, with those of the first tile. bits: of a key's and of a value's code.
    """
    dim = exact.shape[1] // (2 * TILE_TOKENS)
    tiles = []
    for tile in range(-(-stored // TILE_TOKENS)):
        if 0 < tile < encoded // TILE_TOKENS:
            key, _ = from_record(records[ids[tile]].view(np.uint8), dim, TILE_TOKENS, *bits)
            tiles.append(decode(key).T)
        else:
            place = 0 if tile == 0 else 1 + (tile - 1) % (exact.shape[0] - 1)
            blocks = exact[place, : TILE_TOKENS * dim].reshape(-1, dim, BLOCK_TOKENS).astype(np.float64)
            tiles.append(blocks.transpose(0, 2, 1).reshape(TILE_TOKENS, dim))
    turned: Doubles = np.concatenate(tiles)[:stored] @ hadamard(dim)
    return turned
