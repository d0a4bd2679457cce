"""Builds inputs for KVarNAttention, computes the oracle's answer, and compares outputs and caches with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION
from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.plugins.oracles.kvarn import Tile, decode, from_record, to_record
from tests.support.ops.attention_inputs import at_layer

Arrays = dict[str, np.ndarray]
BLOCK_TOKENS = 16


class Row(NamedTuple):
    """The tokens of a row.

    held, new: tokens in the cache, and new tokens.
    drafts: the number of last new tokens that are not committed.
    late: the number of complete tiles that are not encoded yet.
    """

    held: int
    new: int
    drafts: int = 0
    late: int = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call.

    held_skew: KV head h holds h * held_skew tokens less.
    other_heads: heads that the tables have for other layers, after those of this one.
    exact_tiles: F, the number of exact tiles in a slot.
    """

    name: str
    rows: tuple[Row, ...]
    query_heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    k_bits: int = 4
    v_bits: int = 2
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    iterations: int = 8
    robust: int = 0
    rotate_values: int = 1
    exact_tiles: int = 2
    held_skew: int = 0
    other_heads: int = 0
    layers: int = 2
    layer: int = 1
    magnitude: float = 1.0
    # of the root mean square: float32 against float64. A single number may be off by 50 times that: in float32 one new
    # token in a thousand rounds to the neighbouring half, 1e-3 away where it is near 2
    tolerance: float = 2e-5

    @property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes; defaults are left out so that they are tested."""
        given = {a.name: getattr(self, a.name) for a in KVARN_ATTENTION.attributes if a.default is not None}
        defaults = {a.name: a.default for a in KVARN_ATTENTION.attributes}
        chosen = {name: value for name, value in given.items() if value != defaults[name]}
        return {"layer": self.layer, "scale": self.dim**-0.5, **chosen}

    def lens(self, row: Row, head: int) -> tuple[int, int, int, int]:
        """Tokens held, held after the call, encoded before it and after it."""
        held = max(0, row.held - self.held_skew * head)
        total = held + row.new
        before = max(0, held // TILE_TOKENS - row.late) * TILE_TOKENS
        return held, total, before, max(before, (total - row.drafts) // TILE_TOKENS * TILE_TOKENS)


def make_inputs(case: Case, seed: int = 0) -> Arrays:
    """Random inputs; record ids and slots scattered, all that may not be read is random bytes (NaN too) or -1."""
    rng = np.random.default_rng(seed)
    tokens, batch = sum(row.new for row in case.rows), len(case.rows)
    lens = np.array([[case.lens(row, h) for h in range(case.kv_heads)] for row in case.rows], np.int32)
    lens = lens.reshape(batch, case.kv_heads, 4)
    counts = np.maximum(lens[..., 3] // TILE_TOKENS - 1, 0)
    width, count = 1 + int(counts.max(initial=0)) + 1, int(counts.sum()) + 3
    table = np.full((batch, case.kv_heads, width), -1, np.int32)
    ids = iter(rng.permutation(count).tolist())
    for row, head in np.ndindex(batch, case.kv_heads):
        table[row, head, 1 : 1 + counts[row, head]] = [next(ids) for _ in range(counts[row, head])]
    slots = rng.permutation(batch + 2)[:batch].astype(np.int32)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * case.magnitude).astype(np.float32)

    arrays = {
        "query": normal(tokens, case.query_heads, case.dim),
        "key": normal(tokens, case.kv_heads, case.dim),
        "value": normal(tokens, case.kv_heads, case.dim),
        "tiles": np.stack([random_record(case, rng) for _ in range(count)]),
        "exact": make_exact(case, rng, lens, slots),
        "query_starts": np.cumsum([0, *(row.new for row in case.rows)]).astype(np.int32),
        "kv_lens": at_layer(case, lens[..., 0], 7),
        "tile_table": at_layer(case, table, -1),
        "slots": slots,
        "encoded_lens": np.stack([at_layer(case, lens[..., i], 3) for i in (2, 3)]),
    }
    if case.sinks:
        arrays["sinks"] = normal(case.query_heads)
    return arrays


def random_record(case: Case, rng: np.random.Generator) -> np.ndarray:
    """A record of numbers near the case's magnitude."""

    def side(rows: int, columns: int, bits: int) -> Tile:
        step = case.magnitude * 4 / (2**bits - 1)
        a = (step * np.exp(0.3 * rng.standard_normal(rows))).astype(np.float16)
        b = (a * -(2**bits - 1) / 2 + 0.1 * case.magnitude * rng.standard_normal(rows)).astype(np.float16)
        c = np.exp(0.3 * rng.standard_normal(columns)).astype(np.float16)
        return Tile(rng.integers(0, 2**bits, (rows, columns), np.uint8), a, b, c)

    keys, values = side(case.dim, TILE_TOKENS, case.k_bits), side(TILE_TOKENS, case.dim, case.v_bits)
    return to_record(keys, values, case.k_bits, case.v_bits).view(np.int8)


def make_exact(case: Case, rng: np.random.Generator, lens: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Random numbers in the places of tokens that are held exactly, NaN elsewhere."""
    shape = (len(slots) + 2, case.kv_heads, case.exact_tiles, 2 * TILE_TOKENS * case.dim)
    exact = np.full(shape, np.nan, np.float16)
    for row, head in np.ndindex(*lens.shape[:2]):
        held, _, before, _ = lens[row, head]
        for tile, used in exact_tiles(case, held, before):
            keys, values = tile_views(exact[slots[row], head, tile])
            keys[:used] = rng.standard_normal((used, case.dim)) * case.magnitude
            values[:used] = rng.standard_normal((used, case.dim)) * case.magnitude
    return exact


def exact_tiles(case: Case, tokens: int, encoded: int) -> Iterator[tuple[int, int]]:
    """Place and number of tokens of each exact tile of a sequence."""
    for tile in range(-(-int(tokens) // TILE_TOKENS)):
        if tile == 0 or tile >= encoded // TILE_TOKENS:
            place = 0 if tile == 0 else 1 + (tile - 1) % (case.exact_tiles - 1)
            yield place, min(TILE_TOKENS, int(tokens) - tile * TILE_TOKENS)


def tile_views(tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of an exact tile, [TILE_TOKENS, D] each; keys is a view that can be written by its first axis."""
    keys, values = tile.reshape(2, -1)
    return _KeyView(keys.reshape(TILE_TOKENS // BLOCK_TOKENS, -1, BLOCK_TOKENS)), values.reshape(TILE_TOKENS, -1)


class _KeyView:
    """Keys [TILE_TOKENS, D] that lie in blocks of tokens."""

    def __init__(self, blocked: np.ndarray) -> None:
        self.blocked = blocked

    def __getitem__(self, tokens: slice) -> np.ndarray:
        return self.blocked.transpose(0, 2, 1).reshape(TILE_TOKENS, -1)[tokens]

    def __setitem__(self, tokens: slice, keys: np.ndarray) -> None:
        for token in range(tokens.stop):
            self.blocked[token // BLOCK_TOKENS, :, token % BLOCK_TOKENS] = keys[token]


@cache
def inputs_and_answer(case: Case) -> tuple[Arrays, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The inputs and the oracle's answer."""
    arrays = make_inputs(case)
    return arrays, KVARN_ATTENTION.load_oracle()(**arrays, **case.attributes)


def check(case: Case, arrays: Arrays, got: list[np.ndarray], wanted: tuple[np.ndarray, ...]) -> None:
    """Check that outputs agree, that other records are unchanged, and that encoded and exact tiles agree up to rounding."""
    assert got[0].shape == wanted[0].shape
    error, tolerance = np.abs(got[0] - wanted[0]), case.tolerance * case.magnitude
    assert error.max(initial=0) <= 50 * tolerance and np.sqrt((error**2).sum() / max(1, error.size)) <= tolerance
    untouched = np.ones(len(arrays["tiles"]), bool)
    idle = np.ones(len(arrays["exact"]), bool)
    for i, row in enumerate(case.rows):
        for head in range(case.kv_heads if row.new else 0):
            _, total, before, after = case.lens(row, head)
            idle[arrays["slots"][i]] = False
            for tile in range(max(1, before // TILE_TOKENS), after // TILE_TOKENS):
                record = arrays["tile_table"][case.layer, i, head, tile]
                untouched[record] = False
                check_record(case, got[1][record], wanted[1][record])
            for place, used in exact_tiles(case, total, after):
                place = arrays["slots"][i], head, place
                for mine, its in zip(tile_views(got[2][place]), tile_views(wanted[2][place]), strict=True):
                    check_halves(mine[:used], its[:used])
    np.testing.assert_array_equal(got[1][untouched], arrays["tiles"][untouched])
    np.testing.assert_array_equal(got[2][idle], arrays["exact"][idle])


def check_halves(got: np.ndarray, wanted: np.ndarray) -> None:
    """Nearly all are equal; float32 may round the others to the neighbour."""
    np.testing.assert_allclose(got.astype(float), wanted.astype(float), rtol=2**-10, atol=2**-14)
    assert (got != wanted).sum() <= 1 + 0.01 * got.size


def check_record(case: Case, got: np.ndarray, wanted: np.ndarray) -> None:
    """Nearly all codes are equal, the others neighbours; what the records stand for differs by no more than that."""
    shape = case.dim, TILE_TOKENS, case.k_bits, case.v_bits
    for mine, its in zip(*(from_record(x.view(np.uint8), *shape) for x in (got, wanted)), strict=True):
        differing = mine.codes != its.codes
        assert differing.mean() < 1e-3
        step = (its.a.astype(float)[:, None] * its.c.astype(float)) * differing
        np.testing.assert_array_less(np.abs(decode(mine) - decode(its)), 1.01 * step + 4e-3 * np.abs(decode(its)).max())
