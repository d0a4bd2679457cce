"""Tiles of prompts that began alike, kept to be used again: by running rows together, and later while nobody needs them.

A prompt is cut into spans of equal length. A span's key is a hash of its tokens and of everything before it, so equal
keys mean equal tiles. Each span that a row has computed becomes a Prefix; rows that use it are counted, and one that
nobody uses keeps its tiles until they are needed, the longest unused first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(eq=False)
class Prefix:
    """One span. tiles: per group of layers int32 [heads, n].

    sink_rows: rows whose exact buffer holds the prompt's first tile, for the first span where tiles are encoded; without
    any left the span is lost.
    """

    key: bytes
    tiles: list[NDArray[np.int32]]
    users: int = 1
    sink_rows: set[int] = field(default_factory=set)


def span_keys(tokens: Ints, span: int) -> list[bytes]:
    """The key of each whole span of `tokens`."""
    keys, before = list[bytes](), b""
    for begin in range(0, len(tokens) - span + 1, span):
        part = np.ascontiguousarray(tokens[begin : begin + span], np.int64)
        before = hashlib.blake2b(before + part.tobytes(), digest_size=16).digest()
        keys.append(before)
    return keys


class PrefixCache:
    """The prefixes of one engine, those in use and those idle.

    idle_tiles: per group of layers, tiles that no row uses and that could be freed.
    """

    def __init__(self, groups: int) -> None:
        self.idle_tiles = [0] * groups
        self._known: dict[bytes, Prefix] = {}
        self._idle: OrderedDict[bytes, Prefix] = OrderedDict()  # the longest unused first
        self._sink_of: dict[int, Prefix] = {}

    @property
    def sole_sinks(self) -> list[int]:
        """Rows that alone hold the first tile of some prompt, the longest unused first."""
        return [row for row, prefix in self._sink_of.items() if len(prefix.sink_rows) == 1]

    def find(self, keys: list[bytes]) -> list[Prefix]:
        """The prefixes of the longest known beginning of `keys`."""
        return [self._known[key] for key in takewhile(self._known.__contains__, keys)]

    def use(self, prefix: Prefix) -> None:
        """Count one more row."""
        if not prefix.users:
            del self._idle[prefix.key]
            self._count_idle(prefix, -1)
        prefix.users += 1

    def add(self, key: bytes, tiles: list[NDArray[np.int32]]) -> Prefix:
        """Register a span that a row has computed; that row uses it."""
        prefix = self._known[key] = Prefix(key, tiles)
        return prefix

    def leave(self, prefix: Prefix) -> None:
        """Count one row less."""
        prefix.users -= 1
        if not prefix.users:
            self._idle[prefix.key] = prefix
            self._count_idle(prefix, 1)

    def evict(self) -> list[NDArray[np.int32]] | None:
        """Forget the prefix that has been unused longest, and return its tiles; None when all are in use."""
        if not self._idle:
            return None
        prefix = next(iter(self._idle.values()))
        for row in prefix.sink_rows:
            del self._sink_of[row]
        return self._forget(prefix)

    def hold_sink(self, row: int, prefix: Prefix) -> None:
        """Note that `row` uses the first tile of `prefix`'s prompt, and holds it in its exact buffer."""
        prefix.sink_rows.add(row)
        self._sink_of.pop(row, None)
        self._sink_of[row] = prefix

    def lose_sink(self, row: int) -> list[NDArray[np.int32]] | None:
        """Note that it does so no more; the tiles of a prefix that is lost with it, which no row uses."""
        prefix = self._sink_of.pop(row, None)
        if prefix is None:
            return None
        prefix.sink_rows.discard(row)
        if prefix.sink_rows:
            return None
        return self._forget(prefix)

    def _forget(self, prefix: Prefix) -> list[NDArray[np.int32]]:
        assert not prefix.users, "rows that use a prefix hold its sink"
        del self._known[prefix.key], self._idle[prefix.key]
        self._count_idle(prefix, -1)
        return prefix.tiles

    def _count_idle(self, prefix: Prefix, sign: int) -> None:
        for group, tiles in enumerate(prefix.tiles):
            self.idle_tiles[group] += sign * tiles.size
