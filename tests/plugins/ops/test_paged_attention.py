"""Tests of PagedAttention through ONNX Runtime against its oracle."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.ops import attention_inputs
from tests.support.ops.attention_cases import CASES
from tests.support.ops.attention_inputs import Arrays, Case, make_inputs, run, run_in_place

pytestmark = pytest.mark.native
BY_NAME = {case.name: case for case in CASES}


@cache
def inputs_and_answer(case: Case) -> tuple[Arrays, np.ndarray, np.ndarray]:
    arrays = make_inputs(case)
    return arrays, *attention_inputs.expected(case, arrays)


def check(case: Case, got: tuple[np.ndarray, np.ndarray], output: np.ndarray, tiles: np.ndarray) -> None:
    np.testing.assert_array_equal(got[1], tiles)
    assert got[0].shape == output.shape
    np.testing.assert_allclose(got[0], output, rtol=0, atol=case.tolerance * max(1.0, case.magnitude))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle_and_itself_in_place_and_on_one_thread(case: Case, isa: str) -> None:
    arrays, output, tiles = inputs_and_answer(case)
    copied = run(case, arrays)
    check(case, copied, output, tiles)
    for other in (run_in_place(case, arrays), run(case, arrays, threads=1)):
        np.testing.assert_array_equal(other[0], copied[0])
        np.testing.assert_array_equal(other[1], copied[1])


def row_alone(case: Case, arrays: Arrays, row: int) -> tuple[Case, Arrays]:
    """The call with one of its rows only."""
    start, end = arrays["query_starts"][row : row + 2]
    alone = dict(arrays)
    for name in ("query", "key", "value"):
        alone[name] = arrays[name][start:end]
    alone["query_starts"] = np.array([0, end - start], np.int32)
    for name in ("kv_lens", "tile_table"):
        alone[name] = arrays[name][:, row : row + 1]
    return replace(case, rows=case.rows[row : row + 1]), alone


@pytest.mark.parametrize("name", ["mixed", "decode_edges", "everything", "window_200"])
def test_a_row_is_bitwise_the_same_alone_and_in_a_batch(name: str, isa: str) -> None:
    case = BY_NAME[name]
    arrays, _, _ = inputs_and_answer(case)
    together, _ = run(case, arrays)
    for row in range(len(case.rows)):
        start, end = arrays["query_starts"][row : row + 2]
        np.testing.assert_array_equal(run(*row_alone(case, arrays, row))[0], together[start:end])


def test_one_session_serves_concurrent_calls(isa: str) -> None:
    case = BY_NAME["mixed"]
    calls = [make_inputs(case, seed) for seed in range(4)]
    wanted = [run(case, arrays) for arrays in calls]
    with ThreadPoolExecutor(len(calls)) as pool:
        for _ in range(5):
            for got, alone in zip(pool.map(lambda arrays: run(case, arrays), calls), wanted, strict=True):
                np.testing.assert_array_equal(got[0], alone[0])
                np.testing.assert_array_equal(got[1], alone[1])


def test_rows_may_share_tiles_that_one_of_them_fills(isa: str) -> None:
    case = Case(name="shared", rows=((100, 28), (128, 1)), query_heads=2, kv_heads=1, layers=1, layer=0)
    arrays = make_inputs(case)
    arrays["tile_table"][0, 1, 0, 0] = arrays["tile_table"][0, 0, 0, 0]
    check(case, run(case, arrays), *attention_inputs.expected(case, arrays))


def test_infinities_never_reach_a_half_cache(isa: str) -> None:
    case = Case(name="infinite", rows=((0, 1),), query_heads=1, kv_heads=1, layers=1, layer=0)
    arrays = make_inputs(case)
    arrays["value"][:] = np.array([np.inf, -np.inf, 65520.0, -65519.0] * 16, np.float32)
    output, tiles = run(case, arrays)
    assert np.array_equal(np.unique(output), [-65504.0, 65504.0])
    np.testing.assert_array_equal(tiles, attention_inputs.expected(case, arrays)[1])


def test_every_half_rounds_as_numpy_rounds_it(isa: str) -> None:
    case = Case(name="rounding", rows=((0, 512),), query_heads=1, kv_heads=1, dim=1, value_dim=256, layers=1, layer=0)
    arrays = make_inputs(case)
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[:-1] + halves[1:]) / 2  # ties, subnormal ones too
    near = [halves, middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(np.inf))]
    wanted = np.concatenate([*near, -middles])
    arrays["value"].reshape(-1)[:] = np.resize(wanted, arrays["value"].size)
    np.testing.assert_array_equal(run(case, arrays)[1], attention_inputs.expected(case, arrays)[1])
    arrays["value"].reshape(-1)[:] = np.resize(wanted[::-1], arrays["value"].size)
    np.testing.assert_array_equal(run(case, arrays)[1], attention_inputs.expected(case, arrays)[1])


@given(
    rows=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 40)), max_size=4),
    window=st.sampled_from([0, 0, 1, 37, 130]),
    group=st.integers(1, 9),
    dims=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    skew=st.integers(0, 200),
    bits=st.sampled_from([16, 32]),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_ragged_shapes(
    rows: list[tuple[int, int]], window: int, group: int, dims: tuple[int, int], skew: int, bits: int, seed: int
) -> None:
    case = Case(
        name="ragged",
        rows=tuple(rows),
        window=window,
        query_heads=2 * group,
        dim=dims[0],
        value_dim=dims[1],
        held_skew=skew,
        kv_bits=bits,
    )
    arrays = make_inputs(case, seed)
    check(case, run(case, arrays), *attention_inputs.expected(case, arrays))
