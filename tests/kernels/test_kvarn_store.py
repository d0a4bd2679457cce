"""Tests of stage `store` of KVarNAttention: records and exact tiles after a call, against the oracle.

Codes agree as those of the CPU's kernels do (`kvarn_inputs.check_record`): both balance in float32 where the oracle has
float64, so one code in a thousand may be the neighbour of the oracle's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION
from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.plugins.oracles.kvarn import decode, from_record
from tests.support.kernels.attention_calls import kvarn_attention, typed
from tests.support.kernels.device import Device
from tests.support.ops.kvarn_inputs import Arrays, Case, Row, check, check_record, make_inputs, tile_views

DIMS = (32, 64, 128, 256)
BITS = ((2, 2), (4, 2), (4, 4), (8, 8))

ROWS = (Row(255, 1), Row(0, 0), Row(300, 1), Row(200, 190), Row(254, 3, 1), Row(256, 1, 0, 1), Row(256, 0, 0, 1))
"""A tile completed by a decode step, nothing, an open tile, a chunk over two ends, a draft, a tile encoded late, and one
that is not, for its row has no new tokens."""


def small(name: str, **given: object) -> Case:
    """Few heads, because the stored tokens do not depend on queries."""
    return replace(Case(name=name, rows=ROWS, query_heads=2, exact_tiles=3), **given)


CASES = (
    *(small(f"dim_{dim}_bits_{k}_{v}", dim=dim, k_bits=k, v_bits=v) for dim in DIMS for k, v in BITS),
    *(small(f"robust_{dim}", dim=dim, robust=1, magnitude=0.01) for dim in DIMS),
    *(small(f"iterations_{n}", iterations=n, k_bits=2) for n in (0, 1, 3)),
    small("released_small", magnitude=0.01),
    small("robust_large", magnitude=100.0, robust=1),
    small("values_rotated_in_weights", rotate_values=0),
    small("lens_per_head", rows=(Row(300, 90), Row(255, 1)), kv_heads=3, query_heads=3, held_skew=77, exact_tiles=2),
    small("one_exact_tile", rows=(Row(255, 1), Row(128, 128), Row(300, 300), Row(0, 600)), exact_tiles=2),
    small("whole_ring_of_three", rows=(Row(512, 70, 0, 3), Row(511, 400, 0, 2), Row(0, 513, 257)), exact_tiles=4),
    small("sink_alone", rows=(Row(0, 1), Row(0, 128), Row(60, 68), Row(127, 2)), exact_tiles=2),
    small("one_layer", rows=(Row(255, 1),), layers=1, layer=0),
)


def run(device: Device, case: Case, arrays: Arrays) -> list[np.ndarray]:
    return kvarn_attention(device, arrays, case.attributes, "float16")


def check_caches(case: Case, arrays: Arrays, got: list[np.ndarray]) -> None:
    """Compare records and exact tiles, including those that must not change; other tests compare outputs."""
    wanted = KVARN_ATTENTION.load_oracle()(**arrays, **case.attributes)
    check(case, arrays, [wanted[0], *got[1:]], wanted)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_caches_after_a_call(case: Case, device: Device) -> None:
    arrays = typed(make_inputs(case), "float16")
    check_caches(case, arrays, run(device, case, arrays))


def test_new_tokens_of_bfloat16_are_held_as_halves(device: Device) -> None:
    case = small("bfloat16")
    arrays = typed(make_inputs(case), "bfloat16")
    check_caches(case, arrays, kvarn_attention(device, arrays, case.attributes, "bfloat16"))


@pytest.mark.parametrize("magnitude", [0.02, 1.0, 40.0])
@pytest.mark.parametrize("robust", [0, 1])
@pytest.mark.parametrize("dim", DIMS)
def test_uneven_tiles(magnitude: float, robust: int, dim: int, device: Device) -> None:
    """Outlier channels, offsets, and tokens of very different size, from the very halves that the oracle encodes."""
    case = small("uneven", rows=(Row(256, 1, 0, 1),), dim=dim, k_bits=4, v_bits=4, robust=robust, exact_tiles=2)
    arrays, rng = typed(make_inputs(case), "float16"), np.random.default_rng(5)
    for head in range(case.kv_heads):
        for view in tile_views(arrays["exact"][arrays["slots"][0], head, 1]):
            x = rng.standard_normal((TILE_TOKENS, dim)) + 3 * rng.standard_normal(dim)
            x[:, rng.choice(dim, 4, replace=False)] *= 12
            x *= np.exp(0.4 * rng.standard_normal((TILE_TOKENS, 1))) * magnitude
            view[:TILE_TOKENS] = x.astype(np.float16)
    got, wanted = run(device, case, arrays), KVARN_ATTENTION.load_oracle()(**arrays, **case.attributes)
    for record in arrays["tile_table"][case.layer, 0, :, 1]:
        check_record(case, got[1][record], wanted[1][record])


@pytest.mark.parametrize("robust", [0, 1])
def test_tiles_of_one_number_are_exact(robust: int, device: Device) -> None:
    """There is nothing to balance, and for zeros nothing to divide by. Scales are exact up to their rounding to halves."""
    case = small("even", rows=(Row(256, 1, 0, 1),), robust=robust, k_bits=2, v_bits=2, exact_tiles=2)
    arrays = typed(make_inputs(case), "float16")
    for head in range(case.kv_heads):
        keys, values = tile_views(arrays["exact"][arrays["slots"][0], head, 1])
        keys[:TILE_TOKENS], values[:] = np.zeros((TILE_TOKENS, case.dim)), 0.75
    _, tiles, _ = run(device, case, arrays)
    for record in arrays["tile_table"][case.layer, 0, :, 1]:
        sides = from_record(tiles[record].view(np.uint8), case.dim, TILE_TOKENS, case.k_bits, case.v_bits)
        np.testing.assert_array_equal(decode(sides[0]), 0.0)
        np.testing.assert_allclose(decode(sides[1]), 0.75, rtol=2e-3)


def test_keys_that_grow_beyond_halves_saturate(device: Device) -> None:
    """The transform of equal channels is their sum: 8 times as large, in one channel."""
    case = small("huge", rows=(Row(0, 257),), exact_tiles=2)
    arrays = typed(make_inputs(case), "float16")
    arrays["key"][130, 0] = 65504.0
    check_caches(case, arrays, run(device, case, arrays))


def test_repeats_are_bitwise_the_same(device: Device) -> None:
    case = small("repeat", iterations=8)
    arrays = typed(make_inputs(case), "float16")
    for mine, its in zip(run(device, case, arrays)[1:], run(device, case, arrays)[1:], strict=True):
        np.testing.assert_array_equal(mine.view(np.uint8), its.view(np.uint8))


@pytest.mark.parametrize("chunks", [(128, 128, 129), (127, 1, 1, 256), (200, 185)])
def test_records_do_not_depend_on_chunks(chunks: tuple[int, ...], device: Device) -> None:
    """A tile's record is a function of its tokens: not of the calls that brought them, nor of the ring."""
    whole = small("whole", rows=(Row(0, sum(chunks)),), layers=1, layer=0, exact_tiles=2)
    source = typed(make_inputs(whole), "float16")
    wanted = run(device, whole, source)
    tiles, exact, held = source["tiles"], np.full_like(source["exact"], np.nan), 0
    for count in chunks:
        case = replace(whole, rows=(Row(held, count),))
        lens = np.array(case.lens(case.rows[0], 0), np.int32)
        arrays = source | {name: source[name][held : held + count] for name in ("query", "key", "value")}
        arrays |= {
            "tiles": tiles,
            "exact": exact,
            "query_starts": np.array([0, count], np.int32),
            "kv_lens": np.full_like(source["kv_lens"], held),
            "encoded_lens": np.stack([np.full_like(source["kv_lens"], n) for n in lens[2:]]),
        }
        _, tiles, exact = run(device, case, arrays)
        held += count
    ids = source["tile_table"][0, 0, :, 1:3]
    np.testing.assert_array_equal(tiles[ids], wanted[1][ids])
