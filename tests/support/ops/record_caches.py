"""Builds caches of records for the ops of cache policies: records, exact tiles, tables and encoded lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.plugins.oracles.kvarn import encode, hadamard, to_record
from tests.support.ops.attention_inputs import at_layer
from tests.support.ops.kvarn_inputs import tile_views
from tests.support.ops.policy_caches import CacheCase, make_keys

BITS = ((4, 2), (2, 2), (8, 8))


@dataclass(frozen=True, kw_only=True)
class RecordCase(CacheCase):
    """A CacheCase whose keys may lie in records.

    k_bits, v_bits: 0: they do not.
    exact_tiles: F.
    late: complete tiles, the newest ones, that are not encoded yet; fewer where F has no room for them.
    """

    k_bits: int = 0
    v_bits: int = 0
    exact_tiles: int = 2
    late: int = 0

    def encoded(self, lens: np.ndarray) -> np.ndarray:
        """The encoded lengths of heads that store `lens` tokens."""
        return np.maximum(lens // TILE_TOKENS - np.minimum(self.late, self.exact_tiles - 2), 0) * TILE_TOKENS


def make_records(
    case: RecordCase, rng: np.random.Generator, lens: np.ndarray, slots: np.ndarray
) -> dict[str, np.ndarray]:
    """The cache of heads that store lens [B, kv_heads] tokens; what may not be read is random bytes, NaN or -1."""
    encoded = case.encoded(lens)
    counts = np.maximum(encoded // TILE_TOKENS - 1, 0)
    width, count = int((-(-lens // TILE_TOKENS)).max(initial=0)) + 1, int(counts.sum()) + 3
    ids = iter(rng.permutation(count).tolist())
    table = np.full((*lens.shape, width), -1, np.int32)
    records: dict[int, np.ndarray] = {}
    shape = len(slots) + 2, case.kv_heads, case.exact_tiles, 2 * TILE_TOKENS * case.dim
    exact = np.full(shape, np.nan, np.float16)
    for row, head in np.ndindex(lens.shape):
        keys = make_keys(case, rng, int(lens[row, head])) @ hadamard(case.dim)
        for tile in range(-(-int(lens[row, head]) // TILE_TOKENS)):
            own = keys[tile * TILE_TOKENS : (tile + 1) * TILE_TOKENS]
            if 0 < tile < encoded[row, head] // TILE_TOKENS:
                table[row, head, tile] = next(ids)
                values = rng.standard_normal((TILE_TOKENS, case.dim))
                coded = encode(own.T, case.k_bits), encode(values, case.v_bits)
                records[int(table[row, head, tile])] = to_record(*coded, case.k_bits, case.v_bits).view(np.int8)
            else:
                place = 0 if tile == 0 else 1 + (tile - 1) % (case.exact_tiles - 1)
                tile_views(exact[slots[row], head, place])[0][: len(own)] = own
    size = len(next(iter(records.values()))) if records else _record_bytes(case)
    pool = rng.integers(-128, 128, (count, size), np.int8)
    for id, record in records.items():
        pool[id] = record
    lengths = at_layer(case, encoded.astype(np.int32), 3)
    return {
        "tiles": pool,
        "tile_table": at_layer(case, table, -1),
        "exact": exact,
        "encoded_lens": np.stack([lengths, np.full_like(lengths, -1)]),
    }


def _record_bytes(case: RecordCase) -> int:
    zeros = (
        encode(np.zeros((case.dim, TILE_TOKENS)), case.k_bits),
        encode(np.zeros((TILE_TOKENS, case.dim)), case.v_bits),
    )
    return to_record(*zeros, case.k_bits, case.v_bits).size
