"""Sizes of a loaded engine: rows, tokens in a step, and tiles that fit into the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginewright.runtime.artifact.manifest import Cache, CacheLayer, Manifest
from enginewright.runtime.cache.policy import governed_layers, open_policy
from enginewright.runtime.cache.policy_bounds import Bounds
from enginewright.runtime.errors import RequestError

_LOGIT_BYTES = 64 * 2**20  # of the logits that a step may score, in addition to those of the rows

EXACT_TILES = 2  # tiles of a row that stay exact where tiles are encoded: the first one and the newest


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Sizes that stay fixed while an engine is loaded; created by `plan_capacity`.

    rows: the most requests in a step.
    context: the most tokens of a request.
    step_tokens: the most tokens in a step, over all rows.
    logit_rows: the most rows of logits in a step.
    tiles: number of tiles in each layer's pool.
    chunk: number of prompt tokens that go into a step together, all or none, a whole number of tiles; 0 where prompts may
        be cut anywhere. Needed where tiles are encoded: a token sees the tokens of its own step exactly, so otherwise
        results would depend on which other requests run.
    span: number of prompt tokens that the prefix cache finds and keeps as one piece, a whole number of chunks; 0 without
        a prefix cache.
    width: the most tokens that a decoding row brings into a step.
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
    """Sizes of the largest step; created by `plan_step`.

    tokens: tokens over all rows.
    scored: rows of logits for scoring requests, in addition to the rows that decide tokens.
    chunk: as in Capacity.
    """

    tokens: int
    scored: int
    chunk: int


def plan_step(cache: Cache, *, rows: int, width: int, prefill_chunk: int, vocab_size: int) -> StepSizes:
    """Return the sizes of a step that has room for `prefill_chunk` tokens of prompts, or `width` tokens of every row.

    Where tiles are encoded, it has room for both at once: for a chunk, rounded down to whole tiles, and for the rows.
    """
    chunk = 0
    if any(layer.exact_bytes for layer in cache.layers):
        chunk = max(prefill_chunk // cache.tile_tokens, 1) * cache.tile_tokens
    tokens = chunk + rows * width if chunk else max(prefill_chunk, rows * width)
    scored = max(min(_LOGIT_BYTES // (4 * vocab_size), tokens), cache.tile_tokens if chunk else 1)
    return StepSizes(tokens=tokens, scored=scored, chunk=chunk)


def plan_tiles(cache: Cache, *, rows: int, context: int, step_tokens: int, cache_tokens: int) -> tuple[int, ...]:
    """Return the number of tiles in each layer's pool, for `cache_tokens` tokens over all rows.

    A layer with a window needs no more than the window of each row and the new tokens of one step, so it often gets fewer
    tiles. A layer that encodes tiles keeps the first tile of each row elsewhere. A layer under a cache policy needs no more
    than what the policy stores of each row, and the tiles for the copies of one eviction.
    """
    sizes, kept = [], _tiles_under_policy(cache, context)
    for index, layer in enumerate(cache.layers):
        longest = context // cache.tile_tokens - 1 if layer.exact_bytes else -(-context // cache.tile_tokens)
        needed = min(-(-cache_tokens // cache.tile_tokens), rows * longest)
        if index in kept:
            of_heads, of_row, spare = kept[index]
            of_tokens = sum(min(needed, rows * most) for most in of_heads)
            sizes.append(max(min(of_tokens, rows * of_row), layer.kv_heads) + spare)
            continue
        if layer.window:
            in_window = (layer.window + cache.tile_tokens - 3) // cache.tile_tokens + 2
            needed = min(needed, rows * in_window + -(-step_tokens // cache.tile_tokens))
        sizes.append(max(needed, 1) * layer.kv_heads)
    return tuple(sizes)


def _tiles_under_policy(cache: Cache, context: int) -> dict[int, tuple[list[int], int, int]]:
    """Return the most tiles of a row in each layer that the cache's policy governs; empty without one.

    They are those of each head, those of all heads together, and those for copies.
    """
    policy = open_policy(cache)
    if policy is None:
        return {}
    bounds = Bounds(policy, cache)
    layers = governed_layers(cache)
    heads, of_row = bounds.of_heads(context, context).tolist(), bounds.of_row(context, context).tolist()
    own = [each[: cache.layers[index].kv_heads] for index, each in zip(layers, heads, strict=True)]
    return dict(zip(layers, zip(own, of_row, bounds.spare(context).tolist(), strict=True), strict=True))


def cache_bytes(cache: Cache, tiles: Sequence[int], rows: int) -> int:
    """Return the bytes of all pools with the marks of their tokens, and of the exact tiles and the held queries of `rows` rows."""
    each = (layer.tile_bytes + 4 * layer.marks * cache.tile_tokens for layer in cache.layers)
    pools = sum(count * size for count, size in zip(tiles, each, strict=True))
    return pools + (rows + spare_slots(cache)) * sum(
        layer.exact_tiles * layer.kv_heads * layer.exact_bytes + queries_bytes(layer) for layer in cache.layers
    )


def spare_slots(cache: Cache) -> int:
    """Return the places that the buffers of exact tiles have in addition to those of rows: one where tokens are moved in them."""
    return int(any(layer.exact_bytes and layer.exact_tiles > EXACT_TILES for layer in cache.layers))


def queries_bytes(layer: CacheLayer) -> int:
    """Return the bytes of the queries that a layer holds of each row for its cache policy, as float32."""
    return 4 * layer.query_heads * layer.held_queries * layer.key_dim


def request_bytes(cache: Cache, tokens: int, *, prompt_tokens: int | None = None) -> int:
    """Return the most bytes that the cache of a request of `tokens` tokens takes at once.

    prompt_tokens: tokens of its prompt, as far as a cache policy goes by it; None: all of them.
    """
    tiles = list(plan_tiles(cache, rows=1, context=tokens, step_tokens=1, cache_tokens=tokens))
    if (policy := open_policy(cache)) is not None:
        most = Bounds(policy, cache).of_row(tokens if prompt_tokens is None else prompt_tokens, tokens)
        for index, count in zip(governed_layers(cache), most.tolist(), strict=True):
            tiles[index] = count
    return cache_bytes(cache, tiles, 1) - cache_bytes(cache, [0] * len(tiles), 0)


def copies_bytes(cache: Cache, context: int) -> int:
    """Return the bytes of the tiles that an engine of this context has once for the copies of an eviction; 0 without a policy that copies."""
    tiles, policy = [0] * len(cache.layers), open_policy(cache)
    if policy is not None:
        for index, count in zip(governed_layers(cache), Bounds(policy, cache).spare(context).tolist(), strict=True):
            tiles[index] = count
    return cache_bytes(cache, tiles, 0)


def fit_cache_tokens(cache: Cache, *, rows: int, context: int, step_tokens: int, budget: int) -> int:
    """Return the most tokens whose cache takes at most `budget` bytes.

    The result is a whole number of tiles: at least one, and no more than `rows` full contexts take.
    """
    low, high = 1, rows * -(-context // cache.tile_tokens)
    while low < high:
        middle = (low + high + 1) // 2
        tokens = middle * cache.tile_tokens
        tiles = plan_tiles(cache, rows=rows, context=context, step_tokens=step_tokens, cache_tokens=tokens)
        low, high = (middle, high) if cache_bytes(cache, tiles, rows) <= budget else (low, middle - 1)
    return low * cache.tile_tokens


_MEMORY_SHARE = 0.5
_LEAST_TABLES = 1 << 28  # bytes of tables that are never refused: what is free may be on a device


def _check_tables(cache: Cache, rows: int, context: int, free_bytes: int) -> None:
    """Raise RequestError where the numbers of the tiles of all requests take more than a quarter of what is free."""
    most_heads = max(layer.kv_heads for layer in cache.layers)
    size = 4 * len(cache.layers) * rows * most_heads * -(-context // cache.tile_tokens)
    if size > max(free_bytes // 4, _LEAST_TABLES):
        raise RequestError(
            f"load: got no room for the tables of {rows} requests of {context} tokens, which take {size / 2**30:.1f} GiB; pass a "
            "smaller max_batch, or build the engine with a smaller --max-context"
        )


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
    """Return the sizes to load an engine with; the parameters are those of `load`.

    Without `cache_tokens`, the cache takes at most half of `free_bytes`.

    free_bytes: memory that the weights leave for the cache.
    width: the most tokens that a decoding row brings into a step.

    Raises:
        RequestError: max_batch is out of range, or the tables of so many and such long requests do not fit.
    """
    rows = manifest.limits.max_batch if max_batch is None else max_batch
    if not 1 <= rows <= manifest.limits.max_batch:
        raise RequestError(
            f"load: max_batch: got {rows}, expected 1 to {manifest.limits.max_batch}, the engine's limit"
        )
    cache, context = manifest.cache, manifest.limits.max_context
    _check_tables(cache, rows, context, free_bytes)
    step = plan_step(cache, rows=rows, width=width, prefill_chunk=prefill_chunk, vocab_size=manifest.model.vocab_size)
    if cache_tokens is None:
        budget = int(free_bytes * _MEMORY_SHARE)
        cache_tokens = fit_cache_tokens(cache, rows=rows, context=context, step_tokens=step.tokens, budget=budget)
    if cache.is_dense:  # every row has its own memory, whether or not it is used
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
