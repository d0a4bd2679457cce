"""Tests that bad calls of KVarNAttention fail with a message that names the fault, without access out of bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.ops.bad_inputs import put, replaced
from tests.support.ops.kvarn_inputs import Arrays, Case, Row, make_inputs
from tests.support.ops.op_session import open_op, run_op

pytestmark = pytest.mark.native
CASE = Case(name="errors", rows=(Row(300, 2), Row(5, 1), Row(260, 124)))


def each(*changes: Callable[[Arrays], None]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        for one in changes:
            one(arrays)

    return change


def size(dim: int) -> Callable[[Arrays], None]:
    """All operands with heads of another size."""
    return each(*(replaced(name, lambda x: np.resize(x, (*x.shape[:2], dim))) for name in ("query", "key", "value")))


def same_slot(arrays: Arrays) -> None:
    arrays["slots"][:] = 2, 0, 2


# rows hold 300, 5 and 260 tokens, get 2, 1 and 124, and have 256, 0 and 256 encoded, then 256, 0 and 384
BAD = {
    r"query_starts\[0\]: got 1, expected 0": put("query_starts", 0, 1),
    r"query_starts\[2\]: got 1, expected at least 2": put("query_starts", 2, 1),
    r"query_starts\[3\]: got 128, expected T = 127": put("query_starts", 3, 128),
    r"slots\[0\]: got -1, expected a slot in \[0, 5\)": put("slots", 0, -1),
    r"slots\[1\]: got 5, expected a slot in \[0, 5\)": put("slots", 1, 5),
    r"slots\[2\]: got 2, expected a slot that no other row has": same_slot,
    r"kv_lens\[layer, 1, 0\]: got -1, expected 0 or more": put("kv_lens", (1, 1, 0), -1),
    r"kv_lens\[layer, 0, 1\]: got 400, expected at most 128 beyond the 256 of them": put("kv_lens", (1, 0, 1), 400),
    r"encoded_lens\[0, layer, 0, 0\]: got 100, expected a multiple of 128": put("encoded_lens", (0, 1, 0, 0), 100),
    r"encoded_lens\[0, layer, 0, 0\]: got -128, expected a multiple": put("encoded_lens", (0, 1, 0, 0), -128),
    r"encoded_lens\[1, layer, 0, 1\]: got 257, expected a multiple of 128": put("encoded_lens", (1, 1, 0, 1), 257),
    r"encoded_lens\[0, layer, 0, 0\]: got 384, expected at most the 300 tokens held": put(
        "encoded_lens", (slice(None), 1, 0, 0), 384
    ),
    r"encoded_lens\[1, layer, 0, 0\]: got 128, expected at least 256, as before": put(
        "encoded_lens", (1, 1, 0, 0), 128
    ),
    r"encoded_lens\[1, layer, 0, 0\]: got 384, expected at most the 302 tokens": put("encoded_lens", (1, 1, 0, 0), 384),
    r"encoded_lens\[1, layer, 2, 0\]: got 256, expected more of 385 of them: F = 2 has room for 128": each(
        put("kv_lens", (1, 2, 0), 261), put("encoded_lens", (1, 1, 2, 0), 256)
    ),
    r"encoded_lens\[1, layer, 0, 0\]: got 256, expected at most M = 1 tiles of 128": replaced(
        "tile_table", lambda x: x[..., :1]
    ),
    r"tile_table\[layer, 0, 1\]\[1\]: got -1, expected a record id in \[0, 9\)": put("tile_table", (1, 0, 1, 1), -1),
    r"tile_table\[layer, 2, 0\]\[2\]: got 9, expected a record id in \[0, 9\)": put("tile_table", (1, 2, 0, 2), 9),
    r"tile_table: got 3, expected a record that the call encodes once only": put(
        "tile_table", (1, 2, slice(None), 2), 3
    ),
    r"query: got D = 48, expected a power of two in \[16, 512\]": size(48),
    r"query: got D = 8, expected a power of two": size(8),
    r"query: got D = 1024, expected a power of two": size(1024),
    r"key: got shape \[126, 2, 64\], expected \[T, Hkv, D\] = \[127, any, 64\]": replaced("key", lambda x: x[:126]),
    r"value: got shape \[127, 2, 32\], expected \[T, Hkv, D\] = \[127, 2, 64\]": replaced(
        "value", lambda x: x[:, :, :32]
    ),
    r"query: got 3 heads, expected a multiple of the key's 2": replaced("query", lambda x: x[:, :3]),
    r"tiles: got shape \[9, 7294\], expected \[N, kvarn_tile_bytes\] = \[any, 7296\]": replaced(
        "tiles", lambda x: x[:, :-2]
    ),
    r"exact: got shape \[5, 2, 2, 16383\], expected .* = \[any, 2, any, 16384\]": replaced(
        "exact", lambda x: x[..., 1:]
    ),
    r"exact: got shape \[5, 1, 2, 16384\]": replaced("exact", lambda x: x[:, :1]),
    r"exact: got F = 1, expected 2 tiles or more": replaced("exact", lambda x: x[:, :, :1]),
    r"kv_lens: got shape \[2, 1, 2\], expected \[L, B, H\] = \[any, 3, any\]": replaced("kv_lens", lambda x: x[:, :1]),
    r"kv_lens: got H = 1, expected at least the key's 2 heads": replaced("kv_lens", lambda x: x[:, :, :1]),
    r"tile_table: got shape \[2, 3, 1, 4\], expected \[L, B, H, M\] = \[2, 3, 2, any\]": replaced(
        "tile_table", lambda x: x[:, :, :1]
    ),
    r"tile_table: got shape \[1, 3, 2, 4\]": replaced("tile_table", lambda x: x[:1]),
    r"slots: got shape \[2\], expected \[B\] = \[3\]": replaced("slots", lambda x: x[:2]),
    r"encoded_lens: got shape \[1, 2, 3, 2\], expected \[2, L, B, H\] = \[2, 2, 3, 2\]": replaced(
        "encoded_lens", lambda x: x[:1]
    ),
    r"encoded_lens: got shape \[2, 1, 3, 2\]": replaced("encoded_lens", lambda x: x[:, :1]),
    r"layer: got 1, expected below L = 1": each(
        *(replaced(name, lambda x: x[:1]) for name in ("kv_lens", "tile_table")),
        replaced("encoded_lens", lambda x: x[:, :1]),
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message: str) -> None:
    arrays = make_inputs(CASE)
    BAD[message](arrays)
    with pytest.raises(Exception, match="KVarNAttention: " + message):
        run_op("KVarNAttention", arrays, **CASE.attributes)


def test_the_call_that_they_spoil_is_good() -> None:
    run_op("KVarNAttention", make_inputs(CASE), **CASE.attributes)


def test_sinks_of_another_size_are_named() -> None:
    arrays = make_inputs(CASE) | {"sinks": np.zeros(3, np.float32)}
    with pytest.raises(Exception, match=r"KVarNAttention: sinks: got shape \[3\], expected \[Hq\] = \[4\]"):
        run_op("KVarNAttention", arrays, **CASE.attributes)


GOOD = {"layer": 0, "scale": 1.0}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"scale": 1.0}, "layer: got no attribute, expected an int"),
        ({"layer": 0}, "scale: got no attribute, expected a float"),
        ({**GOOD, "window": -1}, "window: got -1"),
        ({**GOOD, "softcap": -1.0}, "softcap: got -1.0"),
        ({**GOOD, "k_bits": 3}, "k_bits: got 3, expected 2, 4 or 8"),
        ({**GOOD, "v_bits": 16}, "v_bits: got 16, expected 2, 4 or 8"),
        ({**GOOD, "iterations": -1}, "iterations: got -1, expected 0 to 1000"),
        ({**GOOD, "iterations": 1 << 62}, "iterations: got 4611686018427387904, expected 0 to 1000"),
        ({**GOOD, "robust": 2}, "robust: got 2, expected 0 or 1"),
        ({**GOOD, "rotate_values": -1}, "rotate_values: got -1, expected 0 or 1"),
        ({"layer": -1, "scale": 1.0}, "layer: got -1, expected 0 to 65536"),
    ],
)
def test_bad_attribute_is_named(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match="KVarNAttention: " + message):
        open_op("KVarNAttention", tuple(make_inputs(CASE)), tuple(attributes.items()))


def test_record_ids_that_nobody_reads_may_be_anything() -> None:
    """The sink's entry, entries outside a window, and those of rows without new tokens are not read."""
    case = Case(name="window", rows=(Row(600, 1), Row(0, 0)), window=2)
    arrays = make_inputs(case)
    before = run_op("KVarNAttention", arrays, **case.attributes)[0]
    arrays["tile_table"][1, 0, :, :4] = 1 << 30
    arrays["slots"][1] = -1
    arrays["encoded_lens"][:, 1, 1] = 7
    np.testing.assert_array_equal(run_op("KVarNAttention", arrays, **case.attributes)[0], before)
