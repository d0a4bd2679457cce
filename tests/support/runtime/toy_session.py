"""Runs the toy model: a Session over numpy pools with an entry for each token, in tiles or in exact buffers."""

from __future__ import annotations

import numpy as np

from enginewright.runtime.artifact.manifest import Cache
from enginewright.runtime.backends.session import Outputs, PackedStep
from enginewright.runtime.cache.capacity import EXACT_TILES, Capacity
from enginewright.runtime.cache.tile_tables import TileTables

VOCAB = 290
_SEEN, _HEAD, _ENCODED = 10**5, 10**3, 10**9


class ToySession:
    """A Session over numpy pools of entries; `failures` makes the next runs raise.

    tiles[layer] int64 [tiles, tile_tokens]. exact[layer] int64 [rows, heads, EXACT_TILES, tile_tokens]: the first tile of
    each row and its newest one, in layers that encode the others. steps, held: each step, and each row's tokens before it. filled: the
    entries of conditions.
    """

    offers = frozenset({"tiles"})

    def __init__(self, cache: Cache, tables: TileTables, capacity: Capacity) -> None:
        self.run_seconds = 0.0
        self.failures: list[Exception] = []
        self.steps: list[PackedStep] = []
        self.held: list[np.ndarray] = []
        self.filled: dict[tuple[str, int], np.ndarray] = {}
        self._cache, self._tables = cache, tables
        self._tiles = [np.full((tiles, cache.tile_tokens), -1, np.int64) for tiles in capacity.tiles]
        self._exact = [
            np.full((capacity.rows, layer.kv_heads, EXACT_TILES, cache.tile_tokens), -1, np.int64)
            for layer in cache.layers
        ]
        self._encoding = [i for i, layer in enumerate(cache.layers) if layer.exact_bytes]
        self._left = np.zeros((2, capacity.rows), np.int64)  # tokens held and encoded after a row's last step
        self._left[1] = cache.tile_tokens

    def run(self, step: PackedStep) -> Outputs:
        """Hash what each sampled token sees; then the tiles that are full are encoded."""
        for source, target in step.sink_copies:
            for exact in self._exact:
                exact[target, :, 0] = exact[source, :, 0]
        if self.failures:
            raise self.failures.pop()
        self.steps.append(step)
        self.held.append(self._tables.held.copy())
        rows = np.repeat(np.arange(len(step.query_starts) - 1), np.diff(step.query_starts))
        assert len(rows) == len(step.input_ids) > 0
        seen = self._check_encoded(step)
        new = entries(step.input_ids, seen[rows])
        for token, (row, position) in enumerate(zip(rows, step.position_ids, strict=True)):
            assert position == self._tables.held[row] + token - step.query_starts[row]
            self._write_plain(int(row), int(position), int(new[token]))
        logits = []
        for token in step.sample_rows.tolist():
            row, start = int(rows[token]), int(step.query_starts[rows[token]])
            logits.append(self._logits(row, int(step.position_ids[token]), new[start : token + 1]))
        for row in np.unique(rows).tolist():
            self._hold(row, new[step.query_starts[row] : step.query_starts[row + 1]])
        stacked = np.stack(logits)
        return Outputs(stacked, stacked.argmax(axis=1))

    def fill(self, port: str, entry: int, values: np.ndarray) -> None:
        """Keep the entry of a condition."""
        self.filled[port, entry] = values

    def _check_encoded(self, step: PackedStep) -> np.ndarray:
        """The number of encoded tokens of each row, the first tile included, after a check against the row's contents."""
        tables, size = self._tables, self._cache.tile_tokens
        plain = [i for i in range(len(self._cache.layers)) if i not in self._encoding]
        assert not tables.encoded_lens[:, plain].any()
        if not self._encoding:
            return np.zeros(len(tables.held), np.int64)
        for row in np.flatnonzero(np.diff(step.query_starts)).tolist():
            lens = tables.encoded_lens[:, self._encoding, row].reshape(2, -1)
            assert (lens == lens[:, :1]).all(), "alike in all layers and heads"
            held, (before, after) = int(tables.held[row]), lens[:, 0].tolist()
            total = held + int(step.query_starts[row + 1] - step.query_starts[row])
            assert before % size == after % size == 0
            assert before <= held and before <= after <= total
            assert held - max(before, size) < size and total - max(after, size) < size, "of the newest tile a part"
            if held == self._left[0, row]:
                assert max(before, size) == self._left[1, row]
            self._left[:, row] = total, max(after, size)
        before = tables.encoded_lens[0, self._encoding[0], :, 0].astype(np.int64)
        return np.maximum(before, size)

    def _write_plain(self, row: int, position: int, entry: int) -> None:
        for layer, spec in enumerate(self._cache.layers):
            for head in range(0 if spec.exact_bytes else spec.kv_heads):
                assert self._tables.kv_lens[layer, row, head] == self._tables.held[row]
                tile = self._tables.tile_table[layer, row, head, position // self._cache.tile_tokens]
                self._tiles[layer][tile, position % self._cache.tile_tokens] = entry + _HEAD * head

    def _hold(self, row: int, new: np.ndarray) -> None:
        """Hold a row's new entries where tiles are encoded."""
        size, held = self._cache.tile_tokens, int(self._tables.held[row])
        for layer in self._encoding:
            before, after = self._tables.encoded_lens[:, layer, row, 0].tolist()
            for head in range(self._cache.layers[layer].kv_heads):
                exact, ids = self._exact[layer][row, head], self._tables.tile_table[layer, row, head]
                start = held // size * size
                tokens = np.concatenate([exact[min(start, size) // size][: held - start], new + _HEAD * head])
                for at in range(0, len(tokens), size):
                    tile, part = (start + at) // size, tokens[at : at + size]
                    if max(before, size) <= start + at < after:
                        assert len(part) == size
                        self._tiles[layer][ids[tile]] = as_encoded(part)
                    else:
                        exact[min(tile, 1), : len(part)] = part

    def _logits(self, row: int, position: int, new: np.ndarray) -> np.ndarray:
        state = np.uint64(0)
        for layer, spec in enumerate(self._cache.layers):
            first = max(0, position + 1 - spec.window) if spec.window else 0
            for head in range(spec.kv_heads):
                own = new if spec.exact_bytes else new[:0]  # plain tiles hold the step's own tokens already
                held = self._read(layer, row, head, first, position + 1 - len(own))
                seen = np.concatenate([held, own[max(0, first - position - 1 + len(own)) :] + _HEAD * head])
                state = mix(state, seen - _HEAD * head, first, 100 * layer + head)
        return spread(state)

    def _read(self, layer: int, row: int, head: int, first: int, end: int) -> np.ndarray:
        """The entries of held tokens."""
        size, ids = self._cache.tile_tokens, self._tables.tile_table[layer, row, head]
        encoded = int(self._tables.encoded_lens[0, layer, row, head])
        found = []
        for position in range(first, end):
            tile = position // size
            if not self._cache.layers[layer].exact_bytes or size <= position < encoded:
                found.append(self._tiles[layer][ids[tile], position % size])
            else:
                found.append(self._exact[layer][row, head, min(tile, 1), position % size])
        return np.array(found, np.int64)


def entries(tokens: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The entries of tokens that saw so many others encoded; like keys and values, they depend on what the tokens saw."""
    return np.asarray(tokens + _SEEN * seen, np.int64)


def as_encoded(held: np.ndarray) -> np.ndarray:
    """The entries after their tile has been encoded; no entry may be encoded twice."""
    assert (held < _ENCODED).all()
    return held + _ENCODED


def mix(state: np.uint64, seen: np.ndarray, first: int, salt: int) -> np.uint64:
    """The state after a head has seen these entries, from position `first` on."""
    with np.errstate(over="ignore"):
        places = (np.arange(first, first + len(seen)).astype(np.uint64) + np.uint64(7)) * np.uint64(0x9E3779B97F4A7C15)
        total = ((seen.astype(np.uint64) + np.uint64(1)) * places).sum(dtype=np.uint64)
        return (state * np.uint64(31) + np.uint64(salt)) * np.uint64(0xBF58476D1CE4E5B9) ^ total


def spread(state: np.uint64) -> np.ndarray:
    """Return VOCAB pseudo-random logits from 0 to 8."""
    with np.errstate(over="ignore"):
        x = state + np.arange(1, VOCAB + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((x >> np.uint64(40)).astype(np.float32) / np.float32(2**21)).astype(np.float32)
