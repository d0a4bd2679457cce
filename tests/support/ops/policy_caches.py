"""Builds the caches of the ops of cache policies: pools of tiles, tables and lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginewright.plugins.ops.op import Op
from enginewright.plugins.ops.tiles import TILE_TOKENS, tile_bytes
from enginewright.plugins.oracles.paged_attention import tile_views
from tests.support.ops.attention_inputs import at_layer


@dataclass(frozen=True, kw_only=True)
class CacheCase:
    """The cache of one call of TokenScores or MarkTokens.

    held_skew: KV head h holds h * held_skew tokens less.
    other_heads: heads that the tables have for other layers, after those of this one.
    clusters: keys of a head are copies of so many directions, with a little noise; 0: all are random.
    """

    name: str
    query_heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    value_dim: int = 16
    kv_bits: int = 16
    softcap: float = 0.0
    sinks: bool = False
    held_skew: int = 0
    other_heads: int = 0
    layers: int = 2
    layer: int = 1
    magnitude: float = 1.0
    clusters: int = 0

    def attributes_of(self, op: Op, **others: Any) -> dict[str, Any]:
        """The node's attributes; defaults are left out so that they are tested."""
        every = {a.name: getattr(self, a.name, None) for a in op.attributes} | {"scale": self.dim**-0.5} | others
        return {a.name: every[a.name] for a in op.attributes if every[a.name] != a.default}


def make_cache(case: CacheCase, rng: np.random.Generator, lens: np.ndarray) -> dict[str, np.ndarray]:
    """The pool and the table of heads that store lens [B, kv_heads] tokens.

    Tile ids are scattered, unused table entries -1, and unused places and tiles random bytes (NaN too).
    """
    used = -(-lens // TILE_TOKENS)
    width, count = max(1, int(used.max(initial=0))) + 1, int(used.sum()) + 3
    ids = iter(rng.permutation(count).tolist())
    table = np.full((*lens.shape, width), -1, np.int32)
    pool = rng.integers(-128, 128, (count, tile_bytes(case.dim, case.value_dim, case.kv_bits)), np.int8)
    keys, values = tile_views(pool, case.dim, case.value_dim, case.kv_bits)
    for row, head in np.ndindex(lens.shape):
        fresh = make_keys(case, rng, int(lens[row, head]))
        for tile in range(int(used[row, head])):
            id = table[row, head, tile] = next(ids)
            for place, key in enumerate(fresh[tile * TILE_TOKENS : (tile + 1) * TILE_TOKENS]):
                keys[id, place // 16, :, place % 16] = key
                values[id, place] = rng.standard_normal(case.value_dim)
    return {"tiles": pool, "tile_table": at_layer(case, table, -1)}


def make_keys(case: CacheCase, rng: np.random.Generator, count: int) -> np.ndarray:
    """Random keys [count, D]."""
    if not case.clusters:
        return rng.standard_normal((count, case.dim)) * case.magnitude
    directions = rng.standard_normal((case.clusters, case.dim))
    noise = 0.01 * rng.standard_normal((count, case.dim))
    return case.magnitude * (directions[rng.integers(0, case.clusters, count)] + noise)


def lens_of(case: CacheCase, held: list[int]) -> np.ndarray:
    """Stored tokens [B, kv_heads] of rows that hold so many."""
    lens = [[max(0, tokens - case.held_skew * head) for head in range(case.kv_heads)] for tokens in held]
    return np.array(lens, int).reshape(len(held), case.kv_heads)


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


def normal(case: CacheCase, rng: np.random.Generator) -> Callable[..., np.ndarray]:
    """Random float32 arrays of the case's magnitude."""
    return lambda *shape: (rng.standard_normal(shape) * case.magnitude).astype(np.float32)
