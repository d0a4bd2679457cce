"""The numpy definition of KVarNAttention, attention over a KVarN cache; `plugins/ops/kvarn_attention.py` declares it.

The tokens of each row and KV head lie in three regions:

    0 .. TILE_TOKENS - 1               exact for good (attention sinks)
    TILE_TOKENS .. encoded_lens - 1    records (`oracles/kvarn.py`)
    encoded_lens .. the newest         exact, until a call turns their tile into a record

Keys and values are stored rotated by `hadamard`; exact ones are halves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.plugins.oracles.kvarn import ITERATIONS, Mode, decode, encode, from_record, hadamard, to_record

BLOCK_TOKENS = 16
HALF_MAX = 65504.0

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]
Halves = NDArray[np.float16]
Ints = NDArray[np.int32]
Pool = NDArray[np.int8]


@dataclass(frozen=True, kw_only=True)
class KVarNFormat:
    """The format of a cache's records.

    k_bits, v_bits: bits of a key's and of a value's code.
    iterations, mode: arguments of `balance` in `oracles/kvarn.py`.
    """

    k_bits: int = 4
    v_bits: int = 2
    iterations: int = ITERATIONS
    mode: Mode = "release"


@dataclass(frozen=True, kw_only=True)
class KVarNCache:
    """One layer's cache; a call updates it in place.

    records: int8 [N, record_bytes].
    exact: float16 [slots, Hkv, F, 2 * TILE_TOKENS * D]. Tile 0 is the sink. Tile i of a sequence, while it is not encoded,
        is number 1 + (i - 1) % (F - 1). A tile holds keys [TILE_TOKENS / 16][D][16], then values [TILE_TOKENS][D].
    table: int32 [B, Hkv, M], the record of each tile; entry 0 and those of tiles that are not encoded are not read.
    slots: int32 [B], the index of each row in `exact`.
    held: int32 [B, Hkv], the number of tokens in the cache before the call.
    encoded: int32 [2, B, Hkv], the number of encoded tokens before the call, then after it; the sink's tokens count, though
        they stay exact. Multiples of TILE_TOKENS.
    """

    records: Pool
    exact: Halves
    table: Ints
    slots: Ints
    held: Ints
    encoded: Ints
    format: KVarNFormat = KVarNFormat()


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """The rule for weights of tokens: attributes of the op, and its optional input `sinks` [Hq]."""

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: Floats | None = None
    rotate_values: bool = True


def kvarn_attention(
    query: Floats,
    key: Floats,
    value: Floats,
    tiles: Pool,
    exact: Halves,
    query_starts: Ints,
    kv_lens: Ints,
    tile_table: Ints,
    slots: Ints,
    encoded_lens: Ints,
    sinks: Floats | None = None,
    *,
    layer: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    k_bits: int = 4,
    v_bits: int = 2,
    iterations: int = ITERATIONS,
    robust: int = 0,
    rotate_values: int = 1,
) -> tuple[Floats, Pool, Halves]:
    """Output [T, Hq, D], the pool and the exact tiles after the call.

    `plugins/ops/kvarn_attention.py` declares the arguments' shapes and meaning.

    Raises:
        ValueError: lengths contradict each other.
    """
    mode: Mode = "robust" if robust else "release"
    cache = KVarNCache(
        records=tiles.copy(),
        exact=exact.copy(),
        table=tile_table[layer],
        slots=slots,
        held=kv_lens[layer],
        encoded=encoded_lens[:, layer],
        format=KVarNFormat(k_bits=k_bits, v_bits=v_bits, iterations=iterations, mode=mode),
    )
    weighting = Weighting(scale=scale, window=window, softcap=softcap, sinks=sinks, rotate_values=bool(rotate_values))
    output = attend_and_store(query, key, value, cache, query_starts, weighting)
    return output, cache.records, cache.exact


def attend_and_store(
    query: Floats, key: Floats, value: Floats, cache: KVarNCache, query_starts: Ints, weighting: Weighting
) -> Floats:
    """Output [T, Hq, D] of causal attention.

    query[T, Hq, D], key[T, Hkv, D], value[T, Hkv, D]; query and key are rotated by RoPE but not yet by `hadamard`.
    A call's own tokens see each other exactly; tiles are encoded after all tokens have attended.

    Raises:
        ValueError: lengths contradict each other.
    """
    head_dim, kv_heads = key.shape[2], key.shape[1]
    group = query.shape[1] // kv_heads
    h = hadamard(head_dim)
    value_h = h if weighting.rotate_values else np.eye(head_dim)
    turned = query.astype(np.float64) @ h
    new_keys, new_values = _half(key.astype(np.float64) @ h), _half(value.astype(np.float64) @ value_h)
    output = np.zeros(query.shape, query.dtype)
    for row, (start, end) in enumerate(zip(query_starts[:-1].tolist(), query_starts[1:].tolist(), strict=True)):
        for head in range(kv_heads if end > start else 0):
            held = int(cache.held[row, head])
            _check(cache, row, head, held + end - start)
            keys, values = _read(cache, row, head)
            keys = np.concatenate([keys, new_keys[start:end, head].astype(np.float64)])
            values = np.concatenate([values, new_values[start:end, head].astype(np.float64)])
            for token in range(start, end):
                last = held + token - start
                first = max(0, last + 1 - weighting.window) if weighting.window else 0
                for q in range(head * group, (head + 1) * group):
                    weights = _weights(keys[first : last + 1] @ turned[token, q], q, weighting)
                    output[token, q] = weights @ values[first : last + 1] @ value_h
            _write(cache, row, head, new_keys[start:end, head], new_values[start:end, head])
    return output


def _weights(products: Doubles, query_head: int, weighting: Weighting) -> Doubles:
    """The softmax weight of each visible token, from its product q . k."""
    logits = products * weighting.scale
    if weighting.softcap > 0:
        logits = weighting.softcap * np.tanh(logits / weighting.softcap)
    sink = -np.inf if weighting.sinks is None else float(weighting.sinks[query_head])
    maximum = max(float(logits.max()), sink)
    weights: Doubles = np.exp(logits - maximum)
    shares: Doubles = weights / (weights.sum() + np.exp(sink - maximum))
    return shares


def _read(cache: KVarNCache, row: int, head: int) -> tuple[Doubles, Doubles]:
    """The keys and values [held, D] of the tokens in the cache, from all three regions."""
    held, encoded = int(cache.held[row, head]), int(cache.encoded[0, row, head])
    size, f = _head_dim(cache), cache.format
    keys, values = [np.empty((0, size))], [np.empty((0, size))]
    for tile in range(-(-held // TILE_TOKENS)):
        if 0 < tile < encoded // TILE_TOKENS:
            record = cache.records[cache.table[row, head, tile]].view(np.uint8)
            k, v = (decode(part) for part in from_record(record, size, TILE_TOKENS, f.k_bits, f.v_bits))
            k = k.T
        else:
            k, v = (part.astype(np.float64) for part in _exact_tile(cache, row, head, tile))
        keys.append(k)
        values.append(v)
    return np.concatenate(keys)[:held], np.concatenate(values)[:held]


def _write(cache: KVarNCache, row: int, head: int, keys: Halves, values: Halves) -> None:
    """Store the new tokens: tiles that the call completes and commits become records, the others stay exact."""
    held, f = int(cache.held[row, head]), cache.format
    before, after = (int(n) for n in cache.encoded[:, row, head])
    first = held // TILE_TOKENS * TILE_TOKENS
    begun = _exact_tile(cache, row, head, held // TILE_TOKENS) if held > first else (keys[:0], values[:0])
    keys = np.concatenate([begun[0][: held - first], keys])
    values = np.concatenate([begun[1][: held - first], values])
    for tile in range(max(1, before // TILE_TOKENS), after // TILE_TOKENS):
        at = tile * TILE_TOKENS - first
        k, v = _exact_tile(cache, row, head, tile) if at < 0 else (keys[at:][:TILE_TOKENS], values[at:][:TILE_TOKENS])
        stored = encode(k.T, f.k_bits, f.iterations, f.mode), encode(v, f.v_bits, f.iterations, f.mode)
        cache.records[cache.table[row, head, tile]] = to_record(*stored, f.k_bits, f.v_bits).view(np.int8)
    for at in range(0, len(keys), TILE_TOKENS):
        tile = (first + at) // TILE_TOKENS
        if tile == 0 or tile >= after // TILE_TOKENS:
            _put_exact(cache, row, head, tile, keys[at:][:TILE_TOKENS], values[at:][:TILE_TOKENS])


def _exact_index(cache: KVarNCache, tile: int) -> int:
    return 0 if tile == 0 else 1 + (tile - 1) % (cache.exact.shape[2] - 1)


def _exact_tile(cache: KVarNCache, row: int, head: int, tile: int) -> tuple[Halves, Halves]:
    """Keys and values [TILE_TOKENS, D] of an exact tile."""
    size = _head_dim(cache)
    both = cache.exact[cache.slots[row], head, _exact_index(cache, tile)].reshape(2, -1)
    keys = both[0].reshape(-1, size, BLOCK_TOKENS).transpose(0, 2, 1).reshape(TILE_TOKENS, size)
    return keys, both[1].reshape(TILE_TOKENS, size)


def _put_exact(cache: KVarNCache, row: int, head: int, tile: int, keys: Halves, values: Halves) -> None:
    """Replace the first tokens of an exact tile."""
    old_keys, old_values = (part.copy() for part in _exact_tile(cache, row, head, tile))
    old_keys[: len(keys)], old_values[: len(values)] = keys, values
    blocked = old_keys.reshape(-1, BLOCK_TOKENS, keys.shape[1]).transpose(0, 2, 1)
    target = cache.exact[cache.slots[row], head, _exact_index(cache, tile)]
    target[:] = np.concatenate([blocked.reshape(-1), old_values.reshape(-1)])


def _head_dim(cache: KVarNCache) -> int:
    return int(cache.exact.shape[3]) // (2 * TILE_TOKENS)


def _check(cache: KVarNCache, row: int, head: int, total: int) -> None:
    """Check that encoded lengths are whole tiles that exist, and that all exact tokens find a place.

    Raises:
        ValueError: one of these is not so.
    """
    held, (before, after) = int(cache.held[row, head]), cache.encoded[:, row, head].tolist()
    if before % TILE_TOKENS or after % TILE_TOKENS or not 0 <= before <= after <= total or before > held:
        raise ValueError(
            f"encoded[:, {row}, {head}]: got {before} and {after} of {held} held and {total} tokens, "
            f"expected multiples of {TILE_TOKENS} that do not decrease and that the tokens reach"
        )
    room = max(after, TILE_TOKENS) + (cache.exact.shape[2] - 1) * TILE_TOKENS
    if total > room or held > max(before, TILE_TOKENS) + (cache.exact.shape[2] - 1) * TILE_TOKENS:
        raise ValueError(f"exact: got room for {cache.exact.shape[2] - 1} newest tiles, expected it for {total} tokens")


def _half(x: Doubles) -> Halves:
    return np.clip(x, -HALF_MAX, HALF_MAX).astype(np.float16)
