"""Tests of CompactTiles through ONNX Runtime against its oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from enginewright.plugins.oracles.paged_attention import tile_views
from tests.support.ops.bad_inputs import put, replaced
from tests.support.ops.compact_tiles_cases import CASES, Case, expected, make_inputs
from tests.support.ops.op_session import open_op, run_op, run_op_in_place

pytestmark = pytest.mark.native
ERRORS = Case(name="errors", moves=3, tiles=4, head_dim=8, value_dim=8, channels=1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle_and_itself_in_place(case: Case, isa: str) -> None:
    arrays = make_inputs(case)
    wanted = expected(case, arrays)
    for got in (
        run_op("CompactTiles", arrays, **case.attributes),
        run_op_in_place("CompactTiles", arrays, **case.attributes),
    ):
        assert len(got) == len(wanted) == (1 if case.channels is None else 2)
        for mine, its in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize(("share", "first"), [(0.6, 0), (0.8, 5), (0.1, 31), (1.0, 37)])
@pytest.mark.parametrize("kv_bits", [16, 32])
def test_a_gather_is_a_list_of_moves(share: float, first: int, kv_bits: int, isa: str) -> None:
    """The tokens that a mask keeps, in order, in new tiles from a place on: what an eviction does."""
    rng = np.random.default_rng(0)
    tiles = np.zeros((7, 128 * 12 * kv_bits // 8), np.int8)
    keys, values = tile_views(tiles, 8, 4, kv_bits)
    keys[:], values[:] = rng.standard_normal(keys.shape), rng.standard_normal(values.shape)
    kept = np.flatnonzero(rng.random(3 * 128) < share)
    old, new = np.array([4, 0, 2]), np.array([1, 3, 6, 5])
    to = first + np.arange(len(kept))
    moves = np.stack([old[kept // 128], kept % 128, new[to // 128], to % 128], axis=1).astype(np.int32)
    (after,) = run_op("CompactTiles", {"tiles": tiles, "moves": moves}, head_dim=8, value_dim=4, kv_bits=kv_bits)
    new_keys, new_values = tile_views(after, 8, 4, kv_bits)

    def tokens(keys: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return keys[ids].transpose(0, 1, 3, 2).reshape(-1, 8)

    wanted_keys, wanted_values = tokens(keys, new).copy(), values[new].reshape(-1, 4).copy()
    wanted_keys[to], wanted_values[to] = tokens(keys, old)[kept], values[old].reshape(-1, 4)[kept]
    np.testing.assert_array_equal(tokens(new_keys, new), wanted_keys)
    np.testing.assert_array_equal(new_values[new].reshape(-1, 4), wanted_values)
    np.testing.assert_array_equal(after[old], tiles[old])


BAD = {
    r"moves\[1, 0\]: got 4, expected a tile id in \[0, 4\)": put("moves", (1, 0), 4),
    r"moves\[1, 0\]: got -1, expected a tile id in \[0, 4\)": put("moves", (1, 0), -1),
    r"moves\[0, 1\]: got 128, expected a place in \[0, 128\)": put("moves", (0, 1), 128),
    r"moves\[2, 2\]: got 77, expected a tile id in \[0, 4\)": put("moves", (2, 2), 77),
    r"moves\[2, 3\]: got -3, expected a place in \[0, 128\)": put("moves", (2, 3), -3),
    r"moves\[1, 2\]: got \d, expected a tile that no move takes from": lambda arrays: put(
        "moves", (1, 2), arrays["moves"][0, 0]
    )(arrays),
    r"moves: got shape \[3, 3\], expected \[K, 4\] = \[any, 4\]": replaced("moves", lambda x: x[:, :3]),
    r"tiles: got shape \[4, 4094\], expected \[N, tile_bytes\] = \[any, 4096\]": replaced("tiles", lambda x: x[:, :-2]),
    r"marks: got shape \[3, 1, 128\], expected \[N, C, 128\] = \[4, any, 128\]": replaced("marks", lambda x: x[:3]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message: str) -> None:
    arrays = make_inputs(ERRORS)
    BAD[message](arrays)
    with pytest.raises(Exception, match="CompactTiles: " + message):
        run_op("CompactTiles", arrays, **ERRORS.attributes)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"head_dim": 0}, "head_dim: got 0, expected 1 to 65536"),
        ({"value_dim": 2**62}, "value_dim: got 4611686018427387904, expected 1 to 65536"),
        ({"kv_bits": 4}, "kv_bits: got 4, expected 16 or 32"),
    ],
)
def test_bad_attribute_is_named(attributes: dict[str, Any], message: str) -> None:
    given = {"head_dim": 8, "value_dim": 8, **attributes}
    with pytest.raises(Exception, match="CompactTiles: " + message):
        open_op("CompactTiles", ("tiles", "moves"), tuple(given.items()), 1)
