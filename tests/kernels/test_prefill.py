"""Tests of stage `prefill` of PagedAttention beyond the table of cases.

They cover the edges of its blocks of lanes and of tokens, every group, and rows of all stages in one call.

Tolerances are those of decoding, `attention_calls.relative_tolerance`: weights and prepared queries are halves.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support.kernels.attention_calls import (
    check_output,
    other_rows_empty,
    paged_attention,
    relative_tolerance,
    typed,
)
from tests.support.kernels.device import Device
from tests.support.kernels.prefill_edges import BLOCK_LANES, BLOCK_TOKENS, TYPES, around
from tests.support.ops import attention_inputs
from tests.support.ops.attention_inputs import Case


def paged(name: str, *rows: tuple[int, int], **given: object) -> Case:
    return replace(Case(name=name, rows=rows, query_heads=2, kv_heads=1), **given)


CASES = (
    *(paged(f"lanes_{n}", (5, n), query_heads=1) for n in (33, *around(BLOCK_LANES))),
    *(paged(f"tokens_{held}", (held, 17)) for held in (*around(BLOCK_TOKENS), *around(128), *around(192))),
    *(paged(f"group_{group}", (70, 90 // group + 32), query_heads=group) for group in (1, 3, 5, 6, 7, 8, 17, 40)),
    *(paged(f"dim_{dim}", (60, 80), dim=dim, value_dim=dim) for dim in (32, 64, 80, 96, 128, 256)),
    *(paged(f"window_{n}", (100, 90), (0, 40), window=n) for n in (1, 2, *around(BLOCK_TOKENS), 100, 129)),
    paged("window_far", (700, 20), (300, 150), window=70),
    paged("window_of_256", (300, 70), window=33, dim=256, value_dim=256),
    paged("softcap", (100, 60), softcap=20.0, magnitude=2.0),
    paged("sinks", (100, 60), sinks=True, query_heads=4, kv_heads=2),
    paged("sinks_above_all", (3, 40), sinks=True, magnitude=3.0),
    paged("everything", (200, 70), (0, 33), (40, 1), window=50, softcap=10.0, sinks=True, query_heads=6, kv_heads=2),
    paged("rows_of_both_stages", (130, 1), (0, 70), (0, 0), (300, 16), (300, 17), (64, 3), query_heads=4, kv_heads=2),
    paged("lens_per_head", (300, 40), (90, 70), held_skew=77, query_heads=6, kv_heads=3),
    paged("large_logits", (60, 60), magnitude=4.0),
)


def logit_size(case: Case) -> float:
    """Logits have the size of a product of two numbers; a cap leaves no more than itself."""
    return min(case.magnitude**2, case.softcap or np.inf)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, type: str, device: Device) -> None:
    arrays = typed(attention_inputs.make_inputs(case), type)
    output, tiles = attention_inputs.expected(case, arrays)
    got = paged_attention(device, arrays, case.attributes, type)
    check_output(got[0], output, relative_tolerance(type, logit_size(case)))
    np.testing.assert_array_equal(got[1], tiles)


def test_twice_is_bitwise_the_same(device: Device) -> None:
    case = paged("repeat", (100, 90), (0, 40), window=70, query_heads=6, kv_heads=2)
    arrays = typed(attention_inputs.make_inputs(case), "float16")
    first, second = (paged_attention(device, arrays, case.attributes, "float16")[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_row_does_not_depend_on_others(device: Device) -> None:
    case = paged("rows", (130, 40), (0, 200), (64, 64), query_heads=4, kv_heads=2)
    arrays = typed(attention_inputs.make_inputs(case), "float16")
    together = paged_attention(device, arrays, case.attributes, "float16")[0]
    for row in range(len(case.rows)):
        alone, tokens = other_rows_empty(arrays, row)
        got = paged_attention(device, alone, case.attributes, "float16")[0]
        np.testing.assert_array_equal(got, together[tokens])
