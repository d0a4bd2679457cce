"""The prefix cache: tiles of prompts, shared by requests whose prompts have the same beginning.

A prompt is cut into spans of equal length. A span's key is a hash of its tokens and of all tokens before it, so equal keys
mean equal tiles. Each span that a row has computed becomes a Prefix, which counts the rows that use it. A prefix that no
row uses keeps its tiles until they are needed elsewhere; the one that has been unused longest goes first.
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
    """A span of a prompt that has been computed, and its tiles; created by `PrefixCache.add`.

    key: hash of the span's tokens and of all tokens before them.
    tiles: for each group of layers, its tiles' numbers, int32 [heads, n].
    users: number of rows that use the tiles.
    sink_rows: only for a prompt's first span, and only where tiles are encoded: the rows whose exact buffer holds the
        prompt's first tile. When no such row is left, the span is lost.
    """

    key: bytes
    tiles: list[NDArray[np.int32]]
    users: int = 1
    sink_rows: set[int] = field(default_factory=set)


def span_keys(tokens: Ints, span: int, salt: bytes = b"") -> list[bytes]:
    """Return the key of each whole span of `tokens`; another `salt` gives other keys for the same tokens."""
    keys, before = list[bytes](), salt
    for begin in range(0, len(tokens) - span + 1, span):
        part = np.ascontiguousarray(tokens[begin : begin + span], np.int64)
        before = hashlib.blake2b(before + part.tobytes(), digest_size=16).digest()
        keys.append(before)
    return keys


class PrefixCache:
    """The prefixes of one engine, in use or idle; created by TileTables.

    idle_tiles: for each group of layers, the number of tiles of idle prefixes, which could be freed.
    """

    def __init__(self, groups: int) -> None:
        self.idle_tiles = [0] * groups
        self._known: dict[bytes, Prefix] = {}
        self._idle: OrderedDict[bytes, Prefix] = OrderedDict()  # the one unused longest first
        self._sink_of: dict[int, Prefix] = {}

    @property
    def sole_sinks(self) -> list[int]:
        """Rows that hold the only copy of some prompt's first tile, the one unused longest first."""
        return [row for row, prefix in self._sink_of.items() if len(prefix.sink_rows) == 1]

    def find(self, keys: list[bytes]) -> list[Prefix]:
        """Return the prefixes of `keys`, up to the first key that is not known."""
        return [self._known[key] for key in takewhile(self._known.__contains__, keys)]

    def use(self, prefix: Prefix) -> None:
        """Count one more row that uses `prefix`."""
        if not prefix.users:
            del self._idle[prefix.key]
            self._count_idle(prefix, -1)
        prefix.users += 1

    def add(self, key: bytes, tiles: list[NDArray[np.int32]]) -> Prefix:
        """Register a span that a row has computed; that row is its first user."""
        prefix = self._known[key] = Prefix(key, tiles)
        return prefix

    def leave(self, prefix: Prefix) -> None:
        """Count one row less that uses `prefix`; without any left it is idle."""
        prefix.users -= 1
        if not prefix.users:
            self._idle[prefix.key] = prefix
            self._count_idle(prefix, 1)

    def evict(self) -> list[NDArray[np.int32]] | None:
        """Forget the prefix that has been unused longest, and return its tiles; None where none is idle."""
        if not self._idle:
            return None
        prefix = next(iter(self._idle.values()))
        for row in prefix.sink_rows:
            del self._sink_of[row]
        return self._forget(prefix)

    def hold_sink(self, row: int, prefix: Prefix) -> None:
        """Record that the exact buffer of `row` holds the first tile of `prefix`'s prompt, and that `row` uses it."""
        prefix.sink_rows.add(row)
        self._sink_of.pop(row, None)
        self._sink_of[row] = prefix

    def lose_sink(self, row: int) -> list[NDArray[np.int32]] | None:
        """Record that the exact buffer of `row` holds no prompt's first tile any more.

        Return the tiles of the prefix that is lost if this was the only copy, and which no row uses; otherwise None.
        """
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
