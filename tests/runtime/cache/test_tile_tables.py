"""Tests of tile tables: no two rows share a tile, none is lost, and a window keeps the tiles that it still sees."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.artifact.manifest import Cache
from enginewright.runtime.cache.capacity import Capacity, cache_bytes, fit_cache_tokens, plan_tiles
from enginewright.runtime.cache.tile_tables import TileTables
from tests.support.runtime.toy_model import make_cache

SIZE, ROWS, CONTEXT, STEP = 4, 3, 40, 8


def _tables(cache: Cache, cache_tokens: int) -> TileTables:
    tiles = plan_tiles(cache, rows=ROWS, context=CONTEXT, step_tokens=STEP, cache_tokens=cache_tokens)
    return TileTables(cache, Capacity(rows=ROWS, context=CONTEXT, step_tokens=STEP, logit_rows=ROWS + 1, tiles=tiles))


def _check(cache: Cache, tables: TileTables, growing: np.ndarray) -> None:
    """Every tile that a row's next tokens may touch is in range and belongs to no other row or head."""
    for layer, spec in enumerate(cache.layers):
        owners: Counter[int] = Counter()
        for row in range(ROWS):
            held = int(tables.held[row])
            assert (tables.kv_lens[layer, row, : spec.kv_heads] == held).all()
            first = max(0, held + 1 - spec.window) if spec.window else 0
            last = held + int(growing[row])
            for head in range(spec.kv_heads):
                blocks = range(first // SIZE, -(-last // SIZE)) if last else ()
                owners.update(tables.tile_table[layer, row, head, blocks].tolist() if blocks else [])
        assert all(count == 1 for count in owners.values())


@given(
    st.data(), st.sampled_from([(0, 6, 0, 3), (5, 5, 5, 5), (0, 0, 0, 0), (1, 0, 39, 4)]), st.integers(1, 3 * CONTEXT)
)
@settings(max_examples=60, deadline=None)
def test_random_growth_and_release_neither_shares_nor_leaks(
    data: st.DataObject, windows: tuple[int, ...], cache_tokens: int
) -> None:
    cache = make_cache(SIZE, windows)
    tables = _tables(cache, cache_tokens)
    full = tables.free_tiles
    for _ in range(data.draw(st.integers(1, 25))):
        if data.draw(st.booleans()):
            tables.release(data.draw(st.integers(0, ROWS - 1)))
            continue
        wanted = np.array(data.draw(st.lists(st.integers(0, STEP // ROWS + 1), min_size=ROWS, max_size=ROWS)))
        wanted = np.minimum(wanted, np.minimum(CONTEXT, tables.longest_for(0)) - tables.held)
        before = (tables.free_tiles, tables.tile_table.copy())
        if tables.grow(wanted):
            _check(cache, tables, wanted)
            tables.advance(wanted)
        else:
            assert np.count_nonzero(tables.held + wanted) > 1, "a row alone always fits"
            assert (tables.tile_table == before[1]).all()
    for row in range(ROWS):
        tables.release(row)
    assert tables.free_tiles == full
    assert not tables.held.any() and not tables.kv_lens.any()


def test_a_windowed_layer_lives_within_its_bound() -> None:
    cache = make_cache(SIZE, (3, 3, 3, 3))
    tables = _tables(cache, ROWS * CONTEXT)
    share = np.array([1, 1, 1])
    for _ in range(CONTEXT):
        assert tables.grow(share)
        tables.advance(share)
    assert tables.longest_for(0) >= CONTEXT
    assert all(count > 0 for count in tables.free_tiles)


def test_windowed_layers_get_fewer_tiles() -> None:
    cache = make_cache(128, (0, 256, 0, 128))
    tiles = plan_tiles(cache, rows=8, context=8192, step_tokens=512, cache_tokens=8 * 8192)
    assert tiles == (2 * 512, 1 * (8 * 4 + 4), 2 * 512, 2 * (8 * 3 + 4))


@pytest.mark.parametrize("budget", [1, 10_000, 123_456, 10**9])
def test_fit_cache_tokens_fills_the_budget(budget: int) -> None:
    cache = make_cache(128, (0, 256, 0, 128))
    sizes = {"rows": 8, "context": 8192, "step_tokens": 512}
    tokens = fit_cache_tokens(cache, **sizes, budget=budget)
    assert tokens >= 128 and tokens % 128 == 0
    used = cache_bytes(cache, plan_tiles(cache, **sizes, cache_tokens=tokens), 8)
    more = cache_bytes(cache, plan_tiles(cache, **sizes, cache_tokens=tokens + 128), 8)
    assert used <= budget or tokens == 128
    assert more > budget or more == used
