"""A model without a backend whose logits are a hash of everything a token may see, read through the tile tables.

A wrong tile, a wrong length or a freed tile that is still needed changes the hash, so outputs compare exactly with
`reference_logits`, which has no cache at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tokenizers

from enginewright.runtime.artifact import Cache, CacheLayer, Graph, Limits, Manifest, Model
from enginewright.runtime.decoder import Autoregressive
from enginewright.runtime.engine import Engine
from enginewright.runtime.llm import LLM
from enginewright.runtime.scheduler import Scheduler
from enginewright.runtime.session import Outputs, PackedStep
from enginewright.runtime.tiles import Capacity, TileTables, plan_tiles
from enginewright.runtime.tokenizer import Tokenizer

VOCAB = 290
WINDOWS = (0, 6, 0, 3)
HEADS = (2, 1, 2, 2)


def make_cache(tile_tokens: int = 4, windows: Sequence[int] = WINDOWS) -> Cache:
    """Layers with and without windows, one with fewer heads."""
    layers = tuple(
        CacheLayer(kv_heads=heads, key_dim=1, value_dim=1, tile_bytes=8 * tile_tokens, window=window)
        for heads, window in zip(HEADS, windows, strict=True)
    )
    return Cache(kind="toy", tile_tokens=tile_tokens, kv_bits=64, layers=layers)


def reference_logits(tokens: Sequence[int], windows: Sequence[int] = WINDOWS) -> np.ndarray:
    """Logits [VOCAB] after `tokens`."""
    state = np.uint64(0)
    for layer, (window, heads) in enumerate(zip(windows, HEADS, strict=True)):
        seen = np.array(tokens[-window:] if window else tokens, np.int64)
        for head in range(heads):
            state = _mix(state, seen, len(tokens) - len(seen), 100 * layer + head)
    return _spread(state)


class ToySession:
    """A Session over numpy pools of token ids; `failures` makes the next runs raise."""

    def __init__(self, cache: Cache, tables: TileTables, capacity: Capacity) -> None:
        self.run_seconds = 0.0
        self.failures: list[Exception] = []
        self.steps: list[PackedStep] = []
        self._cache, self._tables = cache, tables
        self._pools = [np.full((tiles, cache.tile_tokens), -1, np.int64) for tiles in capacity.tiles]

    def run(self, step: PackedStep) -> Outputs:
        """Write the new tokens of all rows, then hash what each sampled token sees."""
        if self.failures:
            raise self.failures.pop()
        self.steps.append(step)
        rows = np.repeat(np.arange(len(step.query_starts) - 1), np.diff(step.query_starts))
        assert len(rows) == len(step.input_ids) > 0
        for token, (row, position) in enumerate(zip(rows, step.position_ids, strict=True)):
            for layer, spec in enumerate(self._cache.layers):
                for head in range(spec.kv_heads):
                    held = self._tables.kv_lens[layer, row, head]
                    assert position == held + token - step.query_starts[row]
                    tile, slot = self._find(layer, row, head, position)
                    self._pools[layer][tile, slot] = step.input_ids[token] + 1000 * head
        logits = np.stack([self._logits(rows[token], step.position_ids[token]) for token in step.sample_rows])
        return Outputs(logits, logits.argmax(axis=1))

    def _find(self, layer: int, row: int, head: int, position: int) -> tuple[int, int]:
        size = self._cache.tile_tokens
        return int(self._tables.tile_table[layer, row, head, position // size]), position % size

    def _logits(self, row: int, position: int) -> np.ndarray:
        state = np.uint64(0)
        for layer, spec in enumerate(self._cache.layers):
            first = max(0, position + 1 - spec.window) if spec.window else 0
            for head in range(spec.kv_heads):
                places = [self._find(layer, row, head, seen) for seen in range(first, position + 1)]
                seen = np.array([self._pools[layer][place] for place in places]) - 1000 * head
                state = _mix(state, seen, first, 100 * layer + head)
        return _spread(state)


def make_llm(
    core: tokenizers.Tokenizer | None = None,
    *,
    rows: int = 4,
    context: int = 64,
    step_tokens: int = 16,
    cache_tokens: int | None = None,
    tile_tokens: int = 4,
    windows: Sequence[int] = WINDOWS,
    eos: tuple[int, ...] = (0,),
) -> LLM:
    """Return an LLM over a ToySession, which is its `engine.session`."""
    cache = make_cache(tile_tokens, windows)
    tokens = rows * context if cache_tokens is None else cache_tokens
    tiles = plan_tiles(cache, rows=rows, context=context, step_tokens=step_tokens, cache_tokens=tokens)
    capacity = Capacity(rows=rows, context=context, step_tokens=step_tokens, logit_rows=rows + 3, tiles=tiles)
    tables = TileTables(cache, capacity)
    model = Model(family="toy", vocab_size=VOCAB, hidden_size=1, max_positions=context, parameters=0, eos_token_ids=eos)
    manifest = Manifest(
        name="toy",
        created_by="tests",
        model=model,
        limits=Limits(max_batch=rows, max_context=context),
        cache=cache,
        graphs={"decoder": Graph(files=(), inputs=(), outputs=())},
    )
    engine = Engine(Scheduler(tables, capacity), ToySession(cache, tables, capacity), Autoregressive())
    return LLM(manifest, None if core is None else Tokenizer(core, None), engine, capacity, tables.longest)


def _mix(state: np.uint64, seen: np.ndarray, first: int, salt: int) -> np.uint64:
    with np.errstate(over="ignore"):
        places = (np.arange(first, first + len(seen)).astype(np.uint64) + np.uint64(7)) * np.uint64(0x9E3779B97F4A7C15)
        total = ((seen.astype(np.uint64) + np.uint64(1)) * places).sum(dtype=np.uint64)
        return (state * np.uint64(31) + np.uint64(salt)) * np.uint64(0xBF58476D1CE4E5B9) ^ total


def _spread(state: np.uint64) -> np.ndarray:
    """Return VOCAB pseudo-random logits from 0 to 8."""
    with np.errstate(over="ignore"):
        x = state + np.arange(1, VOCAB + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((x >> np.uint64(40)).astype(np.float32) / np.float32(2**21)).astype(np.float32)
