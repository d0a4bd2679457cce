"""Tests of MarkTokens through ONNX Runtime against its oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from enginewright.plugins.ops.mark_tokens import MARK_TOKENS
from tests.support.ops.bad_inputs import put, replaced
from tests.support.ops.mark_tokens_cases import CASES, Arrays, Case, check, expected, make_inputs
from tests.support.ops.op_session import open_op, run_op, run_op_in_place

pytestmark = pytest.mark.native
BY_NAME = {case.name: case for case in CASES}
ERRORS = Case(name="errors", rows=((130, 2), (5, 1)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle_and_itself_in_place_and_on_one_thread(case: Case, isa: str) -> None:
    arrays = make_inputs(case)
    (copied,) = run_op("MarkTokens", arrays, **case.attributes)
    check(case, copied, expected(case, arrays))
    for (other,) in (
        run_op_in_place("MarkTokens", arrays, **case.attributes),
        run_op("MarkTokens", arrays, threads=1, **case.attributes),
    ):
        np.testing.assert_array_equal(other, copied)


def steps_of(case: Case, arrays: Arrays, step: int) -> np.ndarray:
    """The marks after the new tokens of one row came in pieces of `step`."""
    marks, count = arrays["marks"], len(arrays["query"])
    for begin in range(0, count, step):
        end = min(begin + step, count)
        piece = {
            **arrays,
            "query": arrays["query"][begin:end],
            **{name: arrays[name][begin:end] for name in ("position_ids", "values") if name in arrays},
            "query_starts": np.array([0, end - begin], np.int32),
            "kv_lens": arrays["kv_lens"] + np.int32(begin),
            "marks": marks,
        }
        (marks,) = run_op("MarkTokens", piece, **case.attributes)
    return marks


@pytest.mark.parametrize("name", ["prompt_0", "prompt_1", "prompt_2"])
def test_a_prompt_in_pieces_leaves_the_same_marks(name: str) -> None:
    case = BY_NAME[name]
    arrays = make_inputs(case)
    (whole,) = run_op("MarkTokens", arrays, **case.attributes)
    for step in (1, 37):
        check(case, steps_of(case, arrays, step), whole)


BAD = {
    r"query_starts\[1\]: got 5, expected at least 0|query_starts\[2\]: got 3, expected at least 5": put(
        "query_starts", 1, 5
    ),
    r"query_starts\[2\]: got 4, expected T = 3": put("query_starts", 2, 4),
    r"kv_lens\[layer, 1, 0\]: got -1, expected 0 or more": put("kv_lens", (1, 1, 0), -1),
    r"kv_lens\[layer, 1, 1\]: got 384, expected room for 1 new tokens in M = 3": put("kv_lens", (1, 1, 1), 384),
    r"tile_table\[layer, 0, 1\]\[1\]: got -1, expected a tile id in \[0, 9\)": put("tile_table", (1, 0, 1, 1), -1),
    r"kv_heads: got 2, expected a divisor of the 3 query heads": replaced("query", lambda x: x[:, :3]),
    r"tiles: got 20479 bytes a tile, expected those of keys of 64 and values": replaced("tiles", lambda x: x[:, :-1]),
    r"kv_lens: got H = 1, expected at least kv_heads = 2": replaced("kv_lens", lambda x: x[:, :, :1]),
    r"kv_lens: got shape \[2, 1, 2\], expected \[L, B, H\] = \[any, 2, any\]": replaced("kv_lens", lambda x: x[:, :1]),
    r"tile_table: got shape \[1, 2, 2, 3\]": replaced("tile_table", lambda x: x[:1]),
    r"position_ids: got shape \[2\], expected \[T\] = \[3\]": replaced("position_ids", lambda x: x[:2]),
    r"marks: got shape \[9, 1, 127\], expected \[N, C, 128\] = \[9, 1, 128\]": replaced(
        "marks", lambda x: x[..., :127]
    ),
    r"marks: got shape \[8, 1, 128\]": replaced("marks", lambda x: x[:8]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message: str) -> None:
    arrays = make_inputs(ERRORS)
    BAD[message](arrays)
    with pytest.raises(Exception, match="MarkTokens: (" + message + ")"):
        run_op("MarkTokens", arrays, **ERRORS.attributes)


def test_marks_of_another_kind_are_named() -> None:
    arrays, case = make_inputs(ERRORS), replace(ERRORS, kind=1)
    with pytest.raises(Exception, match=r"MarkTokens: marks: got shape \[9, 1, 128\], .* = \[9, 2, 128\]"):
        run_op("MarkTokens", arrays, **case.attributes)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (2, None, r"values: got none, expected \[T, kv_heads\] with kind = 2"),
        (0, (3, 2), r"values: got a tensor, expected none with kind = 0"),
        (2, (3, 3), r"values: got shape \[3, 3\], expected \[T, kv_heads\] = \[3, 2\]"),
        (2, (2, 2), r"values: got shape \[2, 2\], expected"),
    ],
)
def test_values_are_for_one_kind_alone(kind: int, values: tuple[int, int] | None, message: str) -> None:
    case = replace(ERRORS, kind=kind)
    arrays = make_inputs(case)
    arrays.pop("values", None)
    if values is not None:
        arrays["values"] = np.ones(values, np.float32)
    with pytest.raises(Exception, match="MarkTokens: " + message):
        run_op("MarkTokens", arrays, **case.attributes)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"kind": 3}, r"kind: got 3, expected 0 to 2"),
        ({"alpha": 0.0}, "alpha: got 0.0+, expected above 0, at most 1"),
        ({"alpha": float("nan")}, "alpha: got nan"),
        ({"layer": -1}, "layer: got -1, expected 0 to 65536"),
        ({"kv_heads": 0}, "kv_heads: got 0, expected 1 to 65536"),
        ({"softcap": -1.0}, "softcap: got -1.0"),
        ({"scale": float("inf")}, "scale: got inf, expected a finite number"),
        ({"kv_bits": 8}, "kv_bits: got 8, expected 16 or 32"),
    ],
)
def test_bad_attribute_is_named(attributes: dict[str, Any], message: str) -> None:
    required = tuple(tensor.name for tensor in MARK_TOKENS.inputs if not tensor.optional)
    given = {"layer": 0, "kv_heads": 1, "scale": 1.0, "kind": 0, **attributes}
    with pytest.raises(Exception, match="MarkTokens: " + message):
        open_op("MarkTokens", required, tuple(given.items()), 1)
