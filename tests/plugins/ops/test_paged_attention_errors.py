"""Tests that bad calls of PagedAttention fail with a message that names the fault, without access out of bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from enginewright.plugins.ops.paged_attention import PAGED_ATTENTION
from tests.support.ops.attention_inputs import Case, make_inputs, run
from tests.support.ops.bad_inputs import put, replaced
from tests.support.ops.op_session import open_op

pytestmark = pytest.mark.native
REQUIRED = tuple(tensor.name for tensor in PAGED_ATTENTION.inputs if not tensor.optional)
CASE = Case(name="errors", rows=((130, 2), (5, 1)))


BAD = {
    r"query_starts\[0\]: got 1, expected 0": put("query_starts", 0, 1),
    r"query_starts\[2\]: got 1, expected at least 2": put("query_starts", 2, 1),
    r"query_starts\[2\]: got 4, expected T = 3": put("query_starts", 2, 4),
    r"kv_lens\[layer, 1, 0\]: got -1, expected 0 or more": put("kv_lens", (1, 1, 0), -1),
    r"kv_lens\[layer, 1, 1\]: got 384, expected room for 1 new tokens in M = 3": put("kv_lens", (1, 1, 1), 384),
    r"tile_table\[layer, 0, 1\]\[1\]: got -1, expected a tile id in \[0, 9\)": put("tile_table", (1, 0, 1, 1), -1),
    r"tile_table\[layer, 0, 0\]\[0\]: got 9, expected a tile id in \[0, 9\)": put("tile_table", (1, 0, 0, 0), 9),
    r"key: got shape \[2, 2, 64\], expected \[T, Hkv, D\] = \[3, any, 64\]": replaced("key", lambda x: x[:2]),
    r"value: got shape \[3, 1, 64\], expected \[T, Hkv, Dv\] = \[3, 2, any\]": replaced("value", lambda x: x[:, :1]),
    r"query: got 3 heads, expected a multiple of the key's 2": replaced("query", lambda x: x[:, :3]),
    r"tiles: got shape \[9, 32766\], expected \[N, tile_bytes\] = \[any, 32768\]": replaced(
        "tiles", lambda x: x[:, :-2]
    ),
    r"kv_lens: got shape \[2, 1, 2\], expected \[L, B, H\] = \[any, 2, any\]": replaced("kv_lens", lambda x: x[:, :1]),
    r"kv_lens: got H = 1, expected at least the key's 2 heads": replaced("kv_lens", lambda x: x[:, :, :1]),
    r"tile_table: got shape \[2, 2, 1, 3\], expected \[L, B, H, M\] = \[2, 2, 2, any\]": replaced(
        "tile_table", lambda x: x[:, :, :1]
    ),
    r"tile_table: got shape \[1, 2, 2, 3\]": replaced("tile_table", lambda x: x[:1]),
    r"layer: got 1, expected below L = 1": lambda arrays: [
        replaced(name, lambda x: x[:1])(arrays) for name in ("kv_lens", "tile_table")
    ],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message: str) -> None:
    arrays = make_inputs(CASE)
    BAD[message](arrays)
    with pytest.raises(Exception, match="PagedAttention: " + message):
        run(CASE, arrays)


def test_sinks_of_another_size_are_named() -> None:
    case = replace(CASE, sinks=True)
    arrays = make_inputs(case)
    arrays["sinks"] = arrays["sinks"][:3]
    with pytest.raises(Exception, match=r"PagedAttention: sinks: got shape \[3\], expected \[Hq\] = \[4\]"):
        run(case, arrays)


GOOD = {"layer": 0, "scale": 1.0}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"scale": 1.0}, "layer: got no attribute, expected an int"),
        ({"layer": 0}, "scale: got no attribute, expected a float"),
        ({"layer": 0, "scale": 2}, "scale: got an int, expected a float"),
        ({**GOOD, "window": 4.0}, "window: got a float, expected an int"),
        ({**GOOD, "window": -1}, "window: got -1"),
        ({**GOOD, "kv_bits": 8}, "kv_bits: got 8, expected 16 or 32"),
        ({**GOOD, "softcap": -1.0}, "softcap: got -1.0"),
        ({"layer": -1, "scale": 1.0}, "layer: got -1, expected 0 to 65536"),
    ],
)
def test_bad_attribute_is_named(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match="PagedAttention: " + message):
        open_op(PAGED_ATTENTION.name, REQUIRED, tuple(attributes.items()), 1)


def test_unread_tile_ids_may_be_anything() -> None:
    case = replace(CASE, window=2, rows=((300, 1),))
    arrays = make_inputs(case)
    before = run(case, arrays)[0]
    assert (arrays["tile_table"][1, 0, :, :2] == -1).all()
    arrays["tile_table"][1, 0, :, :2] = 1 << 30
    np.testing.assert_array_equal(run(case, arrays)[0], before)
