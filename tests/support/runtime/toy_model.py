"""A model without a backend whose logits are a hash of everything a token may see, read through the tile tables.

A wrong tile, a wrong length or a freed tile that is still needed changes the hash, so outputs compare exactly with
`reference_logits`, which has no cache at all. Where tiles are encoded, the hash also tells whether a token saw another one
exactly, and what that one itself saw encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers

from enginewright.runtime.artifact.manifest import Cache, CacheLayer, Graph, Limits, Manifest, Model
from enginewright.runtime.cache.capacity import Capacity, plan_tiles
from enginewright.runtime.cache.pieces import Pieces
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.decoding.kinds.autoregressive import Autoregressive
from enginewright.runtime.llm import LLM
from enginewright.runtime.scheduling.scheduler import Scheduler
from enginewright.runtime.scheduling.step_loop import StepLoop
from enginewright.runtime.text.tokenizer import Tokenizer
from tests.support.runtime.toy_session import VOCAB, ToySession, as_encoded, entries, mix, spread

WINDOWS = (0, 6, 0, 3)
FULL = (0, 0, 0, 0)
HEADS = (2, 1, 2, 2)


@dataclass(frozen=True)
class Encoding:
    """The layers that encode their tiles, and the number of prompt tokens in one step."""

    layers: tuple[bool, ...] = (True, True, True, True)
    tile_tokens: int = 4
    chunk: int = 8

    def seen(self, tokens: int, prompt: int) -> np.ndarray:
        """The number of encoded tokens when each of `tokens` is computed, the first `prompt` of them in chunks."""
        positions = np.arange(tokens)
        step = np.where(positions < prompt, self.chunk, self.tile_tokens)
        return np.maximum(positions // step * step, self.tile_tokens)


def make_cache(tile_tokens: int = 4, windows: Sequence[int] = WINDOWS, encoding: Encoding | None = None) -> Cache:
    """Layers with and without windows, one with fewer heads."""
    encoded = encoding.layers if encoding else (False,) * len(windows)
    layers = tuple(
        CacheLayer(
            kv_heads=heads,
            key_dim=1,
            value_dim=1,
            tile_bytes=8 * tile_tokens,
            window=window,
            exact_bytes=16 * tile_tokens * is_encoded,
        )
        for heads, window, is_encoded in zip(HEADS, windows, encoded, strict=True)
    )
    return Cache(kind="toy", tile_tokens=tile_tokens, kv_bits=64, layers=layers)


def reference_logits(
    tokens: Sequence[int], windows: Sequence[int] = WINDOWS, encoding: Encoding | None = None, prompt: int = 0
) -> np.ndarray:
    """Logits [VOCAB] after `tokens`, of which the first `prompt` were asked for, and the others generated or scored."""
    count, state = len(tokens), np.uint64(0)
    seen = encoding.seen(count, prompt) if encoding else np.zeros(count, np.int64)
    for layer, (window, heads) in enumerate(zip(windows, HEADS, strict=True)):
        held = entries(np.array(tokens, np.int64), seen)
        if encoding and encoding.layers[layer]:
            is_encoded = (np.arange(count) >= encoding.tile_tokens) & (np.arange(count) < seen[-1])
            held = np.where(is_encoded, as_encoded(held), held)
        first = max(0, count - window) if window else 0
        for head in range(heads):
            state = mix(state, held[first:], first, 100 * layer + head)
    return spread(state)


def greedy(
    prompt: Sequence[int], count: int, windows: Sequence[int] = WINDOWS, encoding: Encoding | None = None
) -> list[int]:
    """The most probable tokens after `prompt`, one after another."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(reference_logits(tokens, windows, encoding, len(prompt)).argmax()))
    return tokens[len(prompt) :]


def make_llm(
    core: tokenizers.Tokenizer | None = None,
    *,
    rows: int = 4,
    context: int = 64,
    step_tokens: int = 16,
    cache_tokens: int | None = None,
    tile_tokens: int = 4,
    windows: Sequence[int] = WINDOWS,
    encoding: Encoding | None = None,
    span: int = 0,
    eos: tuple[int, ...] = (0,),
) -> LLM:
    """Return an LLM over a ToySession, which is its `engine.session`; step_tokens is for plain tiles alone."""
    chunk, scored = 0, 3
    if encoding:
        tile_tokens, chunk = encoding.tile_tokens, encoding.chunk
        step_tokens, scored = chunk + rows, tile_tokens
    cache = make_cache(tile_tokens, windows, encoding)
    tokens = rows * context if cache_tokens is None else cache_tokens
    tiles = plan_tiles(cache, rows=rows, context=context, step_tokens=step_tokens, cache_tokens=tokens)
    capacity = Capacity(
        rows=rows,
        context=context,
        step_tokens=step_tokens,
        logit_rows=rows + scored,
        tiles=tiles,
        chunk=chunk,
        span=span,
    )
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
    decoder = Autoregressive(Pieces(chunk=chunk, tile_tokens=tile_tokens))
    engine = StepLoop(Scheduler(tables, capacity, decoder), ToySession(cache, tables, capacity))
    return LLM(manifest, None if core is None else Tokenizer(core, None), engine, capacity)
