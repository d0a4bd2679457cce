"""A model without a backend, as toy_model's, whose layers and heads read what their lengths and tile tables give them.

Its logits are a hash of the entries that each head sees, in order. An entry is a token at its position, so a tile too few,
too many or out of order changes the hash. `reference` knows nothing of tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from enginewright.runtime.artifact.manifest import Cache, Graph, Limits, Manifest, Model
from enginewright.runtime.backends.session import Outputs, PackedStep
from enginewright.runtime.cache.capacity import Capacity, plan_tiles
from enginewright.runtime.cache.open_tables import open_tables
from enginewright.runtime.cache.pieces import Pieces
from enginewright.runtime.cache.policy import COMPACT, GATES, MARKS, RECORDS, SCORES, TILES, LayerScores, StoredRow
from enginewright.runtime.cache.policy_tables import PolicyTables
from enginewright.runtime.cache.record_tables import RecordTables
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.decoding.kinds.autoregressive import Autoregressive
from enginewright.runtime.decoding.kinds.multi_token import COUNTS, TOKENS, MultiToken
from enginewright.runtime.llm import LLM
from enginewright.runtime.scheduling.scheduler import Scheduler
from enginewright.runtime.scheduling.step_loop import StepLoop
from tests.support.runtime.sample_policies import Seen
from tests.support.runtime.toy_model import HEADS, make_cache
from tests.support.runtime.toy_session import VOCAB, mix, spread

SIZE, CONTEXT = 4, 96
WIDTH = 4
Guess: TypeAlias = Callable[[list[int], int], list[int]]
"""From all tokens of a request so far, and the number of its prompt's, to at most WIDTH - 1 guesses after the next one."""
_HEAD, _PLACE, _CODED = 10**7, 10**3, 10**9
ENCODED = 1 << 20
"""What a `Seen` adds to positions whose tokens are encoded."""


class EvictingSession:
    """A Session over numpy pools of entries, which never writes to a tile that a prefix has.

    Its scores are hashes of a token's position, layer, head and the time. Its marks are too, but for those of h2o and lazy.

    guess: of its heads; None: it has none.
    """

    offers = frozenset({TILES, SCORES, COMPACT, MARKS, GATES})

    def __init__(self, cache: Cache, tables: TileTables, capacity: Capacity, guess: Guess | None = None) -> None:
        self.run_seconds = 0.0
        self.steps: list[PackedStep] = []
        self._guess = guess
        self._brought: dict[int, list[int]] = {}  # of each row, its tokens so far; one taken back is replaced
        self._cache, self._tables = cache, tables
        self._tiles = [np.full((tiles, cache.tile_tokens), -1, np.int64) for tiles in capacity.tiles]
        pools = zip(tables._governed, tables._pools, strict=True) if isinstance(tables, PolicyTables) else ()
        self._pools = dict(pools)

    def run(self, step: PackedStep) -> Outputs:
        """Write the new entries, then hash what each sampled token sees."""
        self.steps.append(step)
        rows = np.repeat(np.arange(len(step.query_starts) - 1), np.diff(step.query_starts))
        logits = {}
        for token, (row, position) in enumerate(zip(rows.tolist(), step.position_ids.tolist(), strict=True)):
            ahead = token - int(step.query_starts[row])
            assert position == self._tables.held[row] + ahead
            self._write(row, ahead, int(step.input_ids[token]) + _PLACE * position)
            self._brought.setdefault(row, [])[position:] = [int(step.input_ids[token])]
            logits[token] = self._logits(row, ahead)
        stacked = np.stack([logits[token] for token in step.sample_rows.tolist()])
        outputs = Outputs(stacked, stacked.argmax(axis=1))
        return outputs if self._guess is None else self._with_guesses(outputs, step, rows, self._guess)

    def _with_guesses(self, outputs: Outputs, step: PackedStep, rows: np.ndarray, guess: Guess) -> Outputs:
        """The outputs with guesses after the greedy token of each sampled row."""
        assert isinstance(self._tables, PolicyTables)
        tokens, counts = np.full((len(step.sample_rows), WIDTH), -7, np.int64), np.ones(len(step.sample_rows), np.int64)
        for i, token in enumerate(step.sample_rows.tolist()):
            row = int(rows[token])
            known = self._brought[row][: int(step.position_ids[token]) + 1]
            guesses = guess(known, int(self._tables._prompts[row]))
            tokens[i, : 1 + len(guesses)] = [outputs.greedy[i], *guesses]
            counts[i] = 1 + len(guesses)
        return replace(outputs, extra={TOKENS: tokens, COUNTS: counts})

    def score(self, row: StoredRow) -> list[LayerScores]:
        """Score what the tiles hold."""
        return hashed_scores(self._positions(row), row.processed)

    def marks(self, row: StoredRow) -> list[np.ndarray]:
        """Mark what the tiles hold."""
        return hashed_marks(self._positions(row), row.processed)

    def compact(self, moves: Mapping[int, np.ndarray]) -> None:
        """Copy entries, none of them to a tile that is read or that a prefix has."""
        for layer, each in moves.items():
            source, target = each[:, :2].T, each[:, 2:].T
            assert not set(source[0].tolist()) & set(target[0].tolist())
            assert not self._pools[layer]._of_prefix[target[0]].any(), "shared tiles stay whole"
            self._tiles[layer][tuple(target)] = self._tiles[layer][tuple(source)]

    def _positions(self, row: StoredRow) -> list[np.ndarray]:
        """The positions of the tokens that a row's tiles hold, [heads, n], of each layer without a window."""
        found = []
        for layer in self._pools:
            held = np.zeros((self._cache.layers[layer].kv_heads, int(row.stored.max())), np.int64)
            for head, own in enumerate(held):
                for index in range(int(self._tables.kv_lens[layer, row.row, head])):
                    pool, place = self._place(layer, row.row, head, index)
                    entry = int(pool[place]) % _CODED
                    assert entry // _HEAD == head
                    own[index] = entry % _HEAD // _PLACE
            found.append(held)
        return found

    def _place(self, layer: int, row: int, head: int, index: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """The array that holds a head's token of an index in the cache, and its place there."""
        size = self._cache.tile_tokens
        return self._tiles[layer], (int(self._tables.tile_table[layer, row, head, index // size]), index % size)

    def _write(self, row: int, ahead: int, entry: int) -> None:
        for layer, spec in enumerate(self._cache.layers):
            for head in range(spec.kv_heads):
                index = int(self._tables.kv_lens[layer, row, head]) + ahead
                pool, place = self._place(layer, row, head, index)
                shared = layer in self._pools and pool is self._tiles[layer] and self._pools[layer]._of_prefix[place[0]]
                assert not shared, "shared tiles stay whole"
                pool[place] = entry + _HEAD * head

    def _logits(self, row: int, ahead: int) -> np.ndarray:
        state = np.uint64(0)
        for layer, spec in enumerate(self._cache.layers):
            for head in range(spec.kv_heads):
                last = int(self._tables.kv_lens[layer, row, head]) + ahead
                first = max(0, last + 1 - spec.window) if spec.window else 0
                places = [self._place(layer, row, head, index) for index in range(first, last + 1)]
                seen = np.array([pool[place] for pool, place in places])
                state = mix(state, seen - _HEAD * head, 0, 100 * layer + head)
        return spread(state)


class RecordSession(EvictingSession):
    """An EvictingSession whose steps leave tokens exact, until `encode` turns a tile of them into an encoded one."""

    offers = frozenset({TILES, SCORES, RECORDS})

    def __init__(self, cache: Cache, tables: TileTables, capacity: Capacity, guess: Guess | None = None) -> None:
        super().__init__(cache, tables, capacity, guess)
        self._exact = [
            np.full((capacity.rows + 1, layer.kv_heads, layer.exact_tiles, cache.tile_tokens), -1, np.int64)
            for layer in cache.layers
        ]

    def compact(self, moves: Mapping[int, np.ndarray]) -> None:
        """Copy entries between exact tiles."""
        for layer, each in moves.items():
            source, target = each[:, :2].T, each[:, 2:].T
            assert not set(source[0].tolist()) & set(target[0].tolist())
            assert len(np.unique(target, axis=1).T) == len(each)
            flat = self._exact[layer].reshape(-1, self._cache.tile_tokens)
            flat[tuple(target)] = flat[tuple(source)]

    def encode(self, row: int, table: np.ndarray, lens: np.ndarray, encoded: np.ndarray) -> None:
        """Encode tiles that are full, none of them twice."""
        size = self._cache.tile_tokens
        for layer in self._pools:
            for head in range(self._cache.layers[layer].kv_heads):
                before, after = (int(each) for each in encoded[:, layer, 0, head])
                held, ring = int(lens[layer, 0, head]), self._cache.layers[layer].exact_tiles - 1
                assert before <= held and after <= held < max(after, size) + ring * size
                for tile in range(max(before // size, 1), after // size):
                    own = self._exact[layer][row, head, 1 + (tile - 1) % ring]
                    assert (own >= 0).all() and (own < _CODED).all()
                    self._tiles[layer][table[layer, 0, head, tile]] = own + _CODED

    def _place(self, layer: int, row: int, head: int, index: int) -> tuple[np.ndarray, tuple[int, ...]]:
        if layer not in self._pools:
            return super()._place(layer, row, head, index)
        size, ring = self._cache.tile_tokens, self._cache.layers[layer].exact_tiles - 1
        tile, encoded = index // size, self._tables.encoded_lens[:, layer, row, head]
        assert encoded[0] == encoded[1], "steps encode nothing"
        if 0 < tile < encoded[0] // size:
            return super()._place(layer, row, head, index)
        return self._exact[layer], (row, head, 1 + (tile - 1) % ring if tile else 0, index % size)


def hashed(positions: np.ndarray, layer: int, now: int, kind: int) -> np.ndarray:
    """Numbers from 0 to 1 that follow from positions [heads, n] and heads, float32."""
    heads = np.arange(len(positions))[:, None]
    mixed = positions * 7919 + heads * 104729 + layer * 1299709 + now * 15485863 + kind * 32452843
    return ((mixed * 2654435761) % 1000003 / 1000003).astype(np.float32)


def hashed_scores(positions: Sequence[np.ndarray], now: int) -> list[LayerScores]:
    """The scores of the tokens at the positions [heads, n] of each layer."""
    return [
        LayerScores(importance=hashed(each, layer, now, 0), redundancy=hashed(each, layer, now, 1))
        for layer, each in enumerate(positions)
    ]


def hashed_marks(positions: Sequence[np.ndarray], now: int) -> list[np.ndarray]:
    """Their marks, in two channels of whole numbers."""
    return [
        np.stack([np.floor(9 * hashed(each, layer, now, kind)) for kind in (2, 3)], axis=1)
        for layer, each in enumerate(positions)
    ]


def reference(tokens: Sequence[int], prompt: int, windows: Sequence[int], seen: Seen) -> np.ndarray:
    """Logits after `tokens`, of which the first `prompt` were asked for."""
    position, state, governed = len(tokens) - 1, np.uint64(0), 0
    entries = np.array(tokens, np.int64) + _PLACE * np.arange(len(tokens))
    for layer, (window, heads) in enumerate(zip(windows, HEADS, strict=True)):
        for head in range(heads):
            places = np.arange(max(0, position + 1 - window), position + 1)
            if not window:
                places = seen(governed, head, position, prompt)
            found = entries[places % ENCODED] + _CODED * (places >= ENCODED)
            state = mix(state, found, 0, 100 * layer + head)
        governed += not window
    return spread(state)


def greedy(prompt: Sequence[int], count: int, windows: Sequence[int], seen: Seen) -> list[int]:
    """The most probable tokens after `prompt`, one after another."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(reference(tokens, len(prompt), windows, seen).argmax()))
    return tokens[len(prompt) :]


def cache_of(policy: dict[str, Any], windows: Sequence[int]) -> Cache:
    """The toy's cache, whose layers without a window encode tiles where the policy chooses tokens before that."""
    cache = replace(make_cache(SIZE, windows), policy=policy)
    if policy.get("granularity") != "record":
        return cache
    encoded = (
        layer if layer.window else replace(layer, exact_bytes=16 * SIZE, exact_tiles=3) for layer in cache.layers
    )
    return replace(cache, layers=tuple(encoded))


def make_llm(
    policy: dict[str, Any],
    windows: Sequence[int],
    *,
    rows: int = 3,
    step_tokens: int = 16,
    cache_tokens: int | None = None,
    span: int = 0,
    guess: Guess | None = None,
) -> LLM:
    """Return an LLM over an EvictingSession, whose guesses are verified if it makes any."""
    cache = cache_of(policy, windows)
    tokens = rows * CONTEXT if cache_tokens is None else cache_tokens
    tiles = plan_tiles(cache, rows=rows, context=CONTEXT, step_tokens=step_tokens, cache_tokens=tokens)
    width = 1 if guess is None else WIDTH
    capacity = Capacity(
        rows=rows,
        context=CONTEXT,
        step_tokens=max(step_tokens, rows * width),
        logit_rows=rows * width + 3,
        tiles=tiles,
        span=span,
        width=width,
    )
    tables = open_tables(cache, capacity)
    manifest = Manifest(
        name="evicting",
        created_by="tests",
        model=Model(family="toy", vocab_size=VOCAB, hidden_size=1, max_positions=CONTEXT, parameters=0),
        limits=Limits(max_batch=rows, max_context=CONTEXT),
        cache=cache,
        graphs={"decoder": Graph(files=(), inputs=(), outputs=())},
    )
    pieces = Pieces(chunk=0, tile_tokens=cache.tile_tokens)
    decoder = Autoregressive(pieces) if guess is None else MultiToken(pieces, verify=True)
    session = RecordSession if isinstance(tables, RecordTables) else EvictingSession
    loop = StepLoop(Scheduler(tables, capacity, decoder), session(cache, tables, capacity, guess))
    return LLM(manifest, None, loop, capacity)


def check_pools(tables: PolicyTables) -> None:
    """Check that every tile is counted by those that have it: rows in their tables, and prefixes."""
    for row in range(len(tables.held)):
        seen = tables._stored_row(row)
        for layer, head in np.ndindex(*seen.stored.shape):
            places = seen.positions(layer, head)
            assert len(places) == seen.stored[layer, head] and (np.diff(places) > 0).all(), "ascending"
    for group, pool in enumerate(tables._groups):
        if pool not in tables._pools:
            continue
        users = np.zeros(len(pool._free), np.int64)
        for row in range(len(tables.held)):
            for head, count in enumerate(pool.count[row].tolist()):
                ids = pool._ids[row, head, :count]
                assert len(set(ids.tolist())) == count
                users[ids] += 1
                exact = 3 * pool.is_encoded
                assert int(tables.held[row]) - pool.gone[row, head] <= (count + exact) * pool._size
        known = [prefix.tiles[group].ravel() for prefix in tables._prefixes._known.values()]
        for ids in known:
            users[ids] += 1
        np.testing.assert_array_equal(users, pool._uses)
        free = pool._free[: pool.free_count]
        assert sorted(free.tolist()) == np.flatnonzero(users == 0).tolist()
