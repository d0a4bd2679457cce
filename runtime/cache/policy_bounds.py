"""The most tiles that a request takes under a cache policy, in each head and in each layer."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import numpy as np

from enginewright.runtime.artifact.manifest import Cache
from enginewright.runtime.cache.policy import COMPACT, RECORDS, CachePolicy, Ints, Mask, TokenPolicy, governed_layers

_KEPT = 1024


def tiles_for(tokens: Ints, encoded: Mask | bool, size: int) -> Ints:
    """Return how many tiles of a pool hold `tokens`, which broadcast to the axes of `encoded` and further ones before them.

    Where tiles are encoded, the first one and the unfinished one lie elsewhere.
    """
    found: Ints = np.where(encoded, np.maximum(tokens // size - 1, 0), -(tokens // -size))
    return found


class Bounds:
    """What a policy says of tokens, as tiles of the layers that it governs; PolicyTables and the capacity's plan create it."""

    def __init__(self, policy: CachePolicy, cache: Cache) -> None:
        self._policy = policy
        self._tokens = cast(TokenPolicy, policy) if COMPACT in policy.needs else None
        governed = governed_layers(cache)
        self._size = cache.tile_tokens
        self._encoded = np.array([bool(cache.layers[index].exact_bytes) for index in governed])
        self._heads: Ints = np.array([cache.layers[index].kv_heads for index in governed], np.int64)
        self._shape = len(governed), max(layer.kv_heads for layer in cache.layers)
        self._has = np.arange(self._shape[1]) < self._heads[:, None]
        self.of_heads = lru_cache(maxsize=_KEPT)(self._of_heads)
        self.of_row = lru_cache(maxsize=_KEPT)(self._of_row)

    def spare(self, context: int) -> Ints:
        """Return the tiles that the eviction of a row of at most `context` tokens needs for copies, int64 [layers].

        They are 0 where whole tiles leave and in a layer whose every head keeps every token, and one a head where tiles are
        encoded while those that leave are still there.
        """
        if RECORDS in self._policy.needs:
            return self._heads.copy()
        if self._tokens is None:
            return np.zeros_like(self._heads)
        kept = np.minimum(self._tokens.most_kept(), self._heads * context)
        least: Ints = np.minimum(self._of_layers(kept), self._heads * -(-context // self._size))
        return np.where(kept > 0, least, 0)

    def _of_heads(self, prompt_tokens: int, tokens: int) -> Ints:
        """Return the most tiles of each head while a request processes `tokens` tokens, int64 [layers, heads]."""
        most = np.minimum(self._policy.most_stored(prompt_tokens, tokens), tokens)
        return tiles_for(np.broadcast_to(most, self._shape), self._encoded[:, None], self._size)

    def _of_row(self, prompt_tokens: int, tokens: int) -> Ints:
        """Return the same for all heads of a layer together, int64 [layers]."""
        each: Ints = (self.of_heads(prompt_tokens, tokens) * self._has).sum(axis=1)
        if self._tokens is None:
            return each
        together = self._of_layers(self._tokens.most_in_layer(prompt_tokens, tokens))
        least: Ints = np.minimum(each, together)
        return least

    def _of_layers(self, tokens: Ints) -> Ints:
        """Return the most tiles that `tokens` [layers] take, however they are shared among a layer's heads."""
        wide = np.broadcast_to(np.asarray(tokens, np.int64), self._heads.shape)
        tiles: Ints = (wide + self._heads * (self._size - 1)) // self._size
        return tiles
