"""The cost of a loaded engine's evictions, and what they save, measured while it serves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from enginewright.runtime.artifact.manifest import Cache
from enginewright.runtime.cache.tile_tables import Ints


class EvictionWatch:
    """Adds up evictions; a measurement, such as `bench`, sets it as `PolicyTables.watch`.

    seconds: time in evictions: scores, the choice of what stays, copies and tables.
    tokens: tokens that have left, counted in each head of each layer.
    peak_bytes: the most that the tiles of requests took at once, with marks.
    full_bytes: the most that they would have taken at once without evictions.
    """

    def __init__(self, cache: Cache) -> None:
        self.seconds, self.tokens = 0.0, 0
        self.peak_bytes, self.full_bytes = 0, 0
        self._size = cache.tile_tokens
        self._tile_bytes = np.array([layer.tile_bytes + 4 * layer.marks * self._size for layer in cache.layers])
        plain = (layer.kv_heads * layer.tile_bytes for layer in cache.layers)
        self._block_bytes = np.array(
            [0 if layer.window else size for layer, size in zip(cache.layers, plain, strict=True)]
        )

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time while the context is entered."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def note_held(self, groups: Sequence[tuple[Ints, int]], lengths: Ints) -> None:
        """Note what rows hold.

        groups: of each group of layers their numbers, and the tiles that rows hold in each of these layers.
        lengths: tokens of each row, whether or not they are stored.
        """
        held = sum(int(self._tile_bytes[layers].sum()) * tiles for layers, tiles in groups)
        windowed = sum(
            int(self._tile_bytes[layers][self._block_bytes[layers] == 0].sum()) * tiles for layers, tiles in groups
        )
        full = int((-(-lengths // self._size)).sum()) * int(self._block_bytes.sum()) + windowed
        self.peak_bytes, self.full_bytes = max(self.peak_bytes, held), max(self.full_bytes, full)
