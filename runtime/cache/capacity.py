"""Sizes of a loaded engine: rows, tokens per step, and tiles that fit into the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginewright.runtime.artifact.manifest import Cache, Manifest
from enginewright.runtime.errors import RequestError

_LOGIT_BYTES = 64 * 2**20  # of the logits that one step may score beside those of the rows

EXACT_TILES = 2  # of a row where tiles are encoded: the first one and the newest


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Sizes that stay fixed while an engine is loaded.

    rows: requests in one step. context: tokens of one request. step_tokens: tokens of all rows in one step.
    logit_rows: logits of one step. tiles: tiles in each layer's pool.
    chunk: 0, or the tokens of a prompt that are computed in one step, all or none; a whole number of tiles, needed where
    tiles are encoded: a token sees its own step's tokens exactly, so results would depend on what else runs.
    span: 0, or the tokens of a prompt that are looked for, and kept, in a piece; a whole number of chunks.
    width: tokens that a decoding row brings into a step at most.
    """

    rows: int
    context: int
    step_tokens: int
    logit_rows: int
    tiles: tuple[int, ...]
    chunk: int = 0
    span: int = 0
    width: int = 1


@dataclass(frozen=True, kw_only=True)
class StepSizes:
    """Of the largest step. tokens: over all rows. scored: logits beside those that decide. chunk: as Capacity has it."""

    tokens: int
    scored: int
    chunk: int


def plan_step(cache: Cache, *, rows: int, width: int, prefill_chunk: int, vocab_size: int) -> StepSizes:
    """Return the sizes of a step that takes prompts in pieces of `prefill_chunk` tokens beside `width` tokens of each row."""
    chunk = 0
    if any(layer.exact_bytes for layer in cache.layers):
        chunk = max(prefill_chunk // cache.tile_tokens, 1) * cache.tile_tokens
    tokens = chunk + rows * width if chunk else max(prefill_chunk, rows * width)
    scored = max(min(_LOGIT_BYTES // (4 * vocab_size), tokens), cache.tile_tokens if chunk else 1)
    return StepSizes(tokens=tokens, scored=scored, chunk=chunk)


def plan_tiles(cache: Cache, *, rows: int, context: int, step_tokens: int, cache_tokens: int) -> tuple[int, ...]:
    """Return each layer's pool size for `cache_tokens` tokens over all rows.

    A windowed layer needs no more than its window per row and one step's new tokens, so it often gets fewer; a layer that
    encodes tiles keeps each row's first one elsewhere.
    """
    sizes = []
    for layer in cache.layers:
        longest = context // cache.tile_tokens - 1 if layer.exact_bytes else -(-context // cache.tile_tokens)
        needed = min(-(-cache_tokens // cache.tile_tokens), rows * longest)
        if layer.window:
            in_window = (layer.window + cache.tile_tokens - 3) // cache.tile_tokens + 2
            needed = min(needed, rows * in_window + -(-step_tokens // cache.tile_tokens))
        sizes.append(max(needed, 1) * layer.kv_heads)
    return tuple(sizes)


def cache_bytes(cache: Cache, tiles: Sequence[int], rows: int) -> int:
    """Bytes of all pools and of the exact tiles of `rows` rows."""
    pools = sum(count * layer.tile_bytes for count, layer in zip(tiles, cache.layers, strict=True))
    return pools + rows * sum(EXACT_TILES * layer.kv_heads * layer.exact_bytes for layer in cache.layers)


def request_bytes(cache: Cache, tokens: int) -> int:
    """Bytes of the cache of one request of `tokens` tokens."""
    tiles = plan_tiles(cache, rows=1, context=tokens, step_tokens=1, cache_tokens=tokens)
    return cache_bytes(cache, tiles, 1)


def fit_cache_tokens(cache: Cache, *, rows: int, context: int, step_tokens: int, budget: int) -> int:
    """Return the most tokens, up to `rows` full contexts, whose cache takes at most `budget` bytes; at least one tile."""
    low, high = 1, rows * -(-context // cache.tile_tokens)
    while low < high:
        middle = (low + high + 1) // 2
        tokens = middle * cache.tile_tokens
        tiles = plan_tiles(cache, rows=rows, context=context, step_tokens=step_tokens, cache_tokens=tokens)
        low, high = (middle, high) if cache_bytes(cache, tiles, rows) <= budget else (low, middle - 1)
    return low * cache.tile_tokens


_MEMORY_SHARE = 0.5


def plan_capacity(
    manifest: Manifest,
    free_bytes: int,
    *,
    max_batch: int | None,
    cache_tokens: int | None,
    prefill_chunk: int,
    prefix_reuse: bool,
    width: int = 1,
) -> Capacity:
    """Return the sizes to load with; a cache that is not asked for takes a share of the memory beside the weights.

    free_bytes: that memory. width: tokens that a decoding row brings into a step at most.
    """
    rows = manifest.limits.max_batch if max_batch is None else max_batch
    if not 1 <= rows <= manifest.limits.max_batch:
        raise RequestError(
            f"load: max_batch: got {rows}, expected 1 to {manifest.limits.max_batch}, the engine's limit"
        )
    cache, context = manifest.cache, manifest.limits.max_context
    step = plan_step(cache, rows=rows, width=width, prefill_chunk=prefill_chunk, vocab_size=manifest.model.vocab_size)
    if cache_tokens is None:
        budget = int(free_bytes * _MEMORY_SHARE)
        cache_tokens = fit_cache_tokens(cache, rows=rows, context=context, step_tokens=step.tokens, budget=budget)
    if cache.is_dense:  # each row has its place whether or not it is used
        rows = min(rows, max(cache_tokens // cache.tile_tokens, 1))
    tiles = plan_tiles(cache, rows=rows, context=context, step_tokens=step.tokens, cache_tokens=cache_tokens)
    can_reuse = prefix_reuse and not cache.is_dense and not any(layer.window for layer in cache.layers)
    return Capacity(
        rows=rows,
        context=context,
        step_tokens=step.tokens,
        logit_rows=rows * width + step.scored,
        tiles=tiles,
        chunk=step.chunk,
        span=(step.chunk or cache.tile_tokens) if can_reuse else 0,
        width=width,
    )
