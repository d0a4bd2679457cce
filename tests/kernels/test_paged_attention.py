"""Tests of PagedAttention's kernels against its oracle, on all cases of the CPU's tests with compiled kernels."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.plugins.ops.paged_attention import HEAD_DIMS
from tests.support.kernels.attention_calls import (
    Arrays,
    check_output,
    other_rows_empty,
    paged_attention,
    relative_tolerance,
    typed,
)
from tests.support.kernels.device import Device
from tests.support.ops import attention_inputs
from tests.support.ops.attention_cases import CASES
from tests.support.ops.attention_inputs import Case, make_inputs

TYPES = ("float16", "bfloat16")


def is_compiled(case: Case) -> bool:
    return case.kv_bits == 16 and (case.dim, case.value_dim) in HEAD_DIMS


EXTRA = (
    *(
        Case(name=f"decode_{dim}", rows=((130, 1), (700, 2), (17, 4)), dim=dim, value_dim=dim)
        for dim in (32, 80, 96, 128, 256)
    ),
    Case(name="decode_group_17", rows=((300, 1), (127, 1)), query_heads=34),
    Case(name="decode_draft_of_group_8", rows=((300, 4), (126, 3)), query_heads=16, dim=128, value_dim=128),
    Case(name="decode_window_of_heads", rows=((900, 2), (300, 1), (20, 3)), held_skew=77, query_heads=6, window=130),
    Case(name="decode_window_1", rows=((1000, 1), (128, 3), (127, 1)), window=1),
    Case(name="decode_softcap_and_sinks", rows=((1000, 1), (200, 3)), softcap=20.0, sinks=True, window=128),
    Case(name="decode_softcap", rows=((300, 1), (600, 2)), softcap=30.0, magnitude=3.0),
)
TABLE = (*CASES, *EXTRA)
BY_NAME = {case.name: case for case in TABLE}


def check(case: Case, arrays: Arrays, type: str, got: list[np.ndarray]) -> None:
    output, tiles = attention_inputs.expected(case, arrays)
    np.testing.assert_array_equal(got[1], tiles)
    # logits have the size of a product of two numbers; a cap of c leaves c at most
    size = min(case.magnitude**2, case.softcap or np.inf)
    check_output(got[0], output, relative_tolerance(type, size))


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, type: str, device: Device) -> None:
    arrays = typed(make_inputs(case), type)
    if is_compiled(case):
        check(case, arrays, type, paged_attention(device, arrays, case.attributes, type))
        return
    with pytest.raises(ValueError, match=r"PagedAttention: (head sizes|kv_bits): got .*, expected "):
        paged_attention(device, arrays, case.attributes, type)


@pytest.mark.parametrize("name", ["decode_edges", "decode_window_of_heads", "decode_draft_of_group_8"])
def test_twice_is_bitwise_the_same(name: str, device: Device) -> None:
    case = BY_NAME[name]
    arrays = typed(make_inputs(case), "float16")
    first, second = (paged_attention(device, arrays, case.attributes, "float16") for _ in range(2))
    for mine, its in zip(first, second, strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("name", ["decode_edges", "verify_draft", "decode_softcap_and_sinks", "decode_80"])
def test_a_row_does_not_depend_on_others(name: str, device: Device) -> None:
    case = BY_NAME[name]
    arrays = typed(make_inputs(case), "float16")
    together = paged_attention(device, arrays, case.attributes, "float16")[0]
    for row in range(len(case.rows)):
        alone, tokens = other_rows_empty(arrays, row)
        got = paged_attention(device, alone, case.attributes, "float16")[0]
        np.testing.assert_array_equal(got, together[tokens])


def test_rows_may_share_tiles_that_one_of_them_fills(device: Device) -> None:
    case = Case(name="shared", rows=((100, 28), (128, 1)), query_heads=1, kv_heads=1, layers=1, layer=0)
    arrays = typed(make_inputs(case), "float16")
    arrays["tile_table"][0, 1, 0, 0] = arrays["tile_table"][0, 0, 0, 0]
    check(case, arrays, "float16", paged_attention(device, arrays, case.attributes, "float16"))


def test_infinities_never_reach_the_cache(device: Device) -> None:
    case = Case(name="infinite", rows=((0, 1),), query_heads=1, kv_heads=1, layers=1, layer=0)
    arrays = typed(make_inputs(case), "bfloat16")
    arrays["value"][:] = np.array([np.inf, -np.inf, 65536.0, -65280.0] * 16, np.float32)
    output, tiles = paged_attention(device, arrays, case.attributes, "bfloat16")
    np.testing.assert_array_equal(np.unique(output), [-65536.0, -65280.0, 65536.0])  # 65504 as bfloat16 is 65536
    np.testing.assert_array_equal(tiles, attention_inputs.expected(case, arrays)[1])


def test_heads_that_do_not_share_keys_are_refused(device: Device) -> None:
    case = BY_NAME["decode_one_row"]
    arrays = make_inputs(case)
    with pytest.raises(ValueError, match="PagedAttention: query_heads: got 3, expected a multiple of the 2 KV heads"):
        paged_attention(device, arrays | {"query": arrays["query"][:, :3]}, case.attributes, "float16")
