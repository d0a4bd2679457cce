"""Tests of KVarNAttention's kernels against its oracle, on all cases of the CPU's tests with compiled kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from enginewright.plugins.ops.kvarn_attention import BITS, HEAD_DIMS, KVARN_ATTENTION
from tests.support.kernels.attention_calls import (
    check_output,
    kvarn_attention,
    other_rows_empty,
    relative_tolerance,
    typed,
)
from tests.support.kernels.device import Device
from tests.support.ops.kvarn_cases import CASES
from tests.support.ops.kvarn_inputs import Arrays, Case, Row, check, make_inputs

TYPES = ("float16", "bfloat16")


def is_compiled(case: Case) -> bool:
    return case.dim in HEAD_DIMS and (case.k_bits, case.v_bits) in BITS


EXTRA = (
    *(
        Case(
            name=f"decode_{dim}_{k}_{v}",
            rows=(Row(900, 1), Row(300, 3), Row(127, 2), Row(0, 4)),
            dim=dim,
            k_bits=k,
            v_bits=v,
        )
        for dim in (32, 64, 128, 256)
        for k, v in ((2, 2), (4, 2), (4, 4), (8, 8))
    ),
    Case(name="decode_group_17", rows=(Row(700, 1), Row(127, 1)), query_heads=34),
    Case(name="decode_draft_of_group_8", rows=(Row(300, 4, 4), Row(1022, 3, 1)), query_heads=16, dim=128),
    Case(
        name="decode_window_of_heads",
        rows=(Row(900, 2), Row(300, 1), Row(20, 3)),
        held_skew=77,
        query_heads=6,
        window=300,
    ),
    Case(name="decode_window_1", rows=(Row(1000, 1), Row(128, 3), Row(127, 1)), window=1),
    Case(name="decode_softcap_and_sinks", rows=(Row(1000, 1), Row(200, 3)), softcap=20.0, sinks=True, window=400),
    Case(name="decode_softcap", rows=(Row(900, 1), Row(600, 2)), softcap=30.0, magnitude=3.0),
    Case(name="decode_small", rows=(Row(900, 1), Row(600, 2)), magnitude=0.01),
    Case(name="decode_late", rows=(Row(700, 1, 0, 1), Row(383, 8, 0, 2)), exact_tiles=4, rotate_values=0),
)
TABLE = (*CASES, *EXTRA)
BY_NAME = {case.name: case for case in TABLE}


def expected(case: Case, arrays: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return KVARN_ATTENTION.load_oracle()(**arrays, **case.attributes)


def check_call(case: Case, arrays: Arrays, type: str, got: list[np.ndarray]) -> None:
    wanted = expected(case, arrays)
    size = min(case.magnitude**2, case.softcap or np.inf)
    # a query is rounded again when a record's scales multiply it, or a record's element when it is decoded; and the
    # output of a prefilled row before it is turned back
    check_output(got[0], wanted[0], relative_tolerance(type, size, roundings=3))
    check(case, arrays, [wanted[0], *got[1:]], wanted)  # the caches


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, type: str, device: Device) -> None:
    arrays = typed(make_inputs(case), type)
    if is_compiled(case):
        check_call(case, arrays, type, kvarn_attention(device, arrays, case.attributes, type))
        return
    with pytest.raises(ValueError, match=r"KVarNAttention: (head_dim|k_bits and v_bits): got .*, expected "):
        kvarn_attention(device, arrays, case.attributes, type)


@pytest.mark.parametrize("name", ["decode_edges", "decode_window_of_heads", "decode_draft_of_group_8"])
def test_twice_is_bitwise_the_same(name: str, device: Device) -> None:
    case = BY_NAME[name]
    arrays = typed(make_inputs(case), "float16")
    first, second = (kvarn_attention(device, arrays, case.attributes, "float16") for _ in range(2))
    for mine, its in zip(first, second, strict=True):
        np.testing.assert_array_equal(mine.view(np.uint8), its.view(np.uint8))


@pytest.mark.parametrize("name", ["decode_edges", "verify_draft", "decode_softcap_and_sinks", "decode_late"])
def test_a_row_does_not_depend_on_others(name: str, device: Device) -> None:
    case = BY_NAME[name]
    arrays = typed(make_inputs(case), "float16")
    together = kvarn_attention(device, arrays, case.attributes, "float16")[0]
    for row in range(len(case.rows)):
        alone, tokens = other_rows_empty(arrays, row)
        got = kvarn_attention(device, alone, case.attributes, "float16")[0]
        np.testing.assert_array_equal(got, together[tokens])


@pytest.mark.parametrize(("k_bits", "v_bits"), [(4, 2), (2, 2), (4, 4), (8, 8)])
@pytest.mark.parametrize("dim", [64, 128])
def test_parts_do_not_change_what_is_attended(k_bits: int, v_bits: int, dim: int, device: Device) -> None:
    """A long row alone is split; one of sixteen is not."""
    case = Case(name="split", rows=(Row(1800, 1),) * 16, kv_heads=1, dim=dim, k_bits=k_bits, v_bits=v_bits)
    many = typed(make_inputs(case), "float16")
    one = many | {name: many[name][:1] for name in ("query", "key", "value", "slots")}
    one |= {name: many[name][:, :1] for name in ("kv_lens", "tile_table")}
    one |= {"encoded_lens": many["encoded_lens"][:, :, :1], "query_starts": many["query_starts"][:2]}
    whole, split = (kvarn_attention(device, arrays, case.attributes, "float16")[0] for arrays in (many, one))
    check_output(split, whole[:1], 2e-3)


def test_too_few_slots_are_refused(device: Device) -> None:
    case = replace(BY_NAME["decode_one_row"], rows=(Row(10, 1),) * 4)
    arrays = make_inputs(case)
    with pytest.raises(ValueError, match="KVarNAttention: slot_count: got 3, expected one for each row at least"):
        kvarn_attention(device, arrays | {"exact": arrays["exact"][:3]}, case.attributes, "float16")
