"""Tests of TokenScores through ONNX Runtime against its oracle."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from enginewright.plugins.ops.token_scores import TOKEN_SCORES
from tests.support.ops.bad_inputs import put, replaced
from tests.support.ops.op_session import open_op, run_op
from tests.support.ops.token_scores_cases import CASES, Case, check, expected, make_inputs

pytestmark = pytest.mark.native
BY_NAME = {case.name: case for case in CASES}
ERRORS = Case(name="errors", held=(130, 20), redundancy=1)


@cache
def inputs_and_answer(case: Case) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    arrays = make_inputs(case)
    return arrays, expected(case, arrays)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, isa: str) -> None:
    arrays, wanted = inputs_and_answer(case)
    check(case, run_op("TokenScores", arrays, **case.attributes), wanted)


@pytest.mark.parametrize("name", ["scope_0_group_0", "redundant", "sinks_1_1", "lens_per_head"])
def test_a_row_is_bitwise_the_same_alone_and_in_a_batch(name: str, isa: str) -> None:
    case = BY_NAME[name]
    arrays, _ = inputs_and_answer(case)
    together = run_op("TokenScores", arrays, **case.attributes)
    for row in range(len(case.held)):
        alone = dict(arrays)
        for given in ("slots", "last_positions"):
            alone[given] = arrays[given][row : row + 1]
        for given in ("kv_lens", "tile_table"):
            alone[given] = arrays[given][:, row : row + 1]
        for mine, its in zip(run_op("TokenScores", alone, threads=1, **case.attributes), together, strict=True):
            np.testing.assert_array_equal(mine[0], its[row])


def test_a_key_of_zeros_is_similar_to_none(isa: str) -> None:
    case = replace(ERRORS, held=(20,), kv_bits=32)
    arrays = make_inputs(case)
    tile = arrays["tile_table"][1, 0, 0, 0]
    keys = arrays["tiles"].view(np.float32)[tile, : 128 * case.dim].reshape(8, case.dim, 16)
    keys[0, :, 3] = 0
    check(case, run_op("TokenScores", arrays, **case.attributes), expected(case, arrays))


def test_a_head_without_scores_needs_no_slot() -> None:
    arrays = make_inputs(replace(ERRORS, held=(130, 8)))
    arrays["slots"][1], arrays["last_positions"][1] = -1, -5
    importance, redundancy = run_op("TokenScores", arrays, **ERRORS.attributes)
    assert not importance[1].any() and not redundancy[1].any() and importance[0].any()


BAD = {
    r"slots\[1\]: got 4, expected a slot in \[0, 4\)": put("slots", 1, 4),
    r"slots\[0\]: got -1, expected a slot in \[0, 4\)": put("slots", 0, -1),
    r"last_positions\[1\]: got 6, expected 7 or more, because the window has 8 tokens": put("last_positions", 1, 6),
    r"kv_lens\[layer, 1, 0\]: got -1, expected 0 or more": put("kv_lens", (1, 1, 0), -1),
    r"kv_lens\[layer, 0, 1\]: got 385, expected room for 0 new tokens in M = 3": put("kv_lens", (1, 0, 1), 385),
    r"tile_table\[layer, 0, 1\]\[1\]: got -1, expected a tile id in \[0, 9\)": put("tile_table", (1, 0, 1, 1), -1),
    r"tile_table\[layer, 0, 0\]\[0\]: got 9, expected a tile id in \[0, 9\)": put("tile_table", (1, 0, 0, 0), 9),
    r"ring: got R = 7, expected at least window = 8": replaced("ring", lambda x: x[:, :, :7]),
    r"kv_heads: got 2, expected a divisor of the 3 query heads": replaced("ring", lambda x: x[:, :3]),
    r"last_positions: got shape \[1\], expected \[B\] = \[2\]": replaced("last_positions", lambda x: x[:1]),
    r"tiles: got 20479 bytes a tile, expected those of keys of 64 and values": replaced("tiles", lambda x: x[:, :-1]),
    r"tiles: got 16384 bytes a tile": replaced("tiles", lambda x: x[:, :16384]),
    r"kv_lens: got shape \[2, 1, 2\], expected \[L, B, H\] = \[any, 2, any\]": replaced("kv_lens", lambda x: x[:, :1]),
    r"kv_lens: got H = 1, expected at least kv_heads = 2": replaced("kv_lens", lambda x: x[:, :, :1]),
    r"tile_table: got shape \[1, 2, 2, 3\]": replaced("tile_table", lambda x: x[:1]),
    r"layer: got 1, expected below L = 1": lambda arrays: [
        replaced(name, lambda x: x[:1])(arrays) for name in ("kv_lens", "tile_table")
    ],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message: str) -> None:
    arrays = make_inputs(ERRORS)
    BAD[message](arrays)
    with pytest.raises(Exception, match="TokenScores: " + message):
        run_op("TokenScores", arrays, **ERRORS.attributes)


RECORDS = Case(name="records", held=(300, 140), k_bits=4, v_bits=2, redundancy=1)
BAD_RECORDS = {
    r"encoded_lens\[0, layer, 1, 0\]: got 64, expected a multiple of 128": put("encoded_lens", (0, 1, 1, 0), 64),
    r"encoded_lens\[0, layer, 1, 0\]: got 256, expected at most the 140 tokens held": put(
        "encoded_lens", (0, 1, 1, 0), 256
    ),
    r"encoded_lens\[0, layer, 0, 1\]: got 128, expected 172 or more, because F = 2": put(
        "encoded_lens", (0, 1, 0, 1), 128
    ),
    r"tile_table\[layer, 0, 0\]\[1\]: got -1, expected a tile id": put("tile_table", (1, 0, 0, 1), -1),
    r"tiles: got shape \[5, 7295\], expected \[N, kvarn_tile_bytes\] = \[any, 7296\]": replaced(
        "tiles", lambda x: x[:, :-1]
    ),
    r"exact: got F = 1, expected 2 tiles or more": replaced("exact", lambda x: x[:, :, :1]),
    r"exact: got shape \[4, 1, 2, 16384\]": replaced("exact", lambda x: x[:, :1]),
    r"encoded_lens: got shape \[1, 2, 2, 2\]": replaced("encoded_lens", lambda x: x[:1]),
    r"ring: got D = 48, expected a power of two": replaced("ring", lambda x: x[..., :48]),
    r"exact: got none, expected one, because k_bits is not 0": lambda arrays: arrays.pop("exact"),
}


@pytest.mark.parametrize("message", BAD_RECORDS)
def test_bad_records_are_named(message: str) -> None:
    arrays = make_inputs(RECORDS)
    BAD_RECORDS[message](arrays)
    with pytest.raises(Exception, match="TokenScores: " + message):
        run_op("TokenScores", arrays, **RECORDS.attributes)


def test_sinks_of_another_size_are_named() -> None:
    case = replace(ERRORS, sinks=True)
    arrays = make_inputs(case)
    arrays["sinks"] = arrays["sinks"][:3]
    with pytest.raises(Exception, match=r"TokenScores: sinks: got shape \[3\], expected \[Hq\] = \[4\]"):
        run_op("TokenScores", arrays, **case.attributes)


GOOD = {"layer": 0, "kv_heads": 1, "scale": 1.0, "window": 8}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"layer": -1}, "layer: got -1, expected 0 to 65536"),
        ({"kv_heads": 0}, "kv_heads: got 0, expected 1 to 65536"),
        ({"scale": float("nan")}, "scale: got nan, expected a finite number"),
        ({"window": 0}, "window: got 0, expected 1 to 65536"),
        ({"window": -(2**63)}, "window: got -9223372036854775808"),
        ({"softcap": -1.0}, "softcap: got -1.0"),
        ({"softcap": float("inf")}, "softcap: got inf"),
        ({"scope": 2}, r"scope: got 2, expected 0 or 1"),
        ({"group": 3}, "group: got 3, expected 0"),
        ({"group": -1}, "group: got -1"),
        ({"redundancy": 2}, "redundancy: got 2, expected 0 or 1"),
        ({"threshold": -0.1}, "threshold: got -0.1"),
        ({"threshold": float("nan")}, "threshold: got nan, expected 0 to 1"),
        ({"kv_bits": 8}, "kv_bits: got 8, expected 16 or 32"),
        ({"k_bits": 3, "v_bits": 2}, r"k_bits: got 3, expected 0 \(no records\), 2, 4 or 8"),
        ({"k_bits": 4}, "v_bits: got 0, expected 2, 4 or 8"),
        ({"v_bits": 4}, "v_bits: got 4, expected 0, as k_bits is"),
    ],
)
def test_bad_attribute_is_named(attributes: dict[str, Any], message: str) -> None:
    required = tuple(tensor.name for tensor in TOKEN_SCORES.inputs if not tensor.optional)
    with pytest.raises(Exception, match="TokenScores: " + message):
        open_op("TokenScores", required, tuple({**GOOD, **attributes}.items()), 1)
