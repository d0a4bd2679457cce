"""Tests of stage `prefill` of KVarNAttention beyond the table of cases.

Tiles of halves, records and new tokens meet at every edge of its blocks, and records have every size and width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION
from enginewright.plugins.ops.tiles import TILE_TOKENS
from tests.support.kernels.attention_calls import ROUNDING, check_output, kvarn_attention, relative_tolerance, typed
from tests.support.kernels.device import Device
from tests.support.kernels.prefill_edges import BLOCK_TOKENS, TYPES, around
from tests.support.ops.kvarn_inputs import Case, Row, make_inputs


def kvarn(name: str, *rows: Row, **given: object) -> Case:
    return replace(Case(name=name, rows=rows, query_heads=2, kv_heads=1, exact_tiles=3), **given)


CASES = (
    *(kvarn(f"fresh_{n}", Row(0, n)) for n in (17, *around(BLOCK_TOKENS), 129, 200)),
    *(kvarn(f"held_{n}", Row(n, 40)) for n in (1, *around(BLOCK_TOKENS), *around(128), 192)),
    *(
        kvarn(f"records_{dim}_{k}_{v}", Row(600, 40), dim=dim, k_bits=k, v_bits=v)
        for dim in (32, 64, 128, 256)
        for k, v in ((2, 2), (4, 2), (4, 4), (8, 8))
    ),
    *(kvarn(f"window_{n}", Row(600, 90), Row(100, 70), window=n) for n in (1, 40, 64, 65, 200)),
    *(kvarn(f"group_{group}", Row(300, 90 // group + 32), query_heads=group) for group in (1, 3, 8, 17)),
    kvarn("window_of_new_tokens", Row(0, 200), window=66),  # from the last of a block on
    kvarn("fresh_of_256", Row(100, 70), dim=256),
    kvarn("late", Row(700, 30, 0, 1), Row(512, 40, 40, 1)),
    kvarn("softcap_and_sinks", Row(600, 60), softcap=10.0, sinks=True, query_heads=4, kv_heads=2),
    kvarn("values_rotated_in_weights", Row(300, 40), rotate_values=0),
    kvarn(
        "rows_of_both_stages", Row(600, 1), Row(0, 70), Row(0, 0), Row(300, 16), Row(300, 17), query_heads=4, kv_heads=2
    ),
    kvarn("lens_per_head", Row(500, 40), Row(90, 70), held_skew=77, query_heads=6, kv_heads=3),
)


def kvarn_tolerance(case: Case, type: str) -> float:
    """Two additions to what both ops have.

    Elements of records become halves for tensor cores, by two roundings: keys move logits, and values outputs. Outputs
    are rounded before they are turned back, and after.
    """
    record = 2 * ROUNDING["float16"] if any(row.held >= 2 * TILE_TOKENS for row in case.rows) else 0.0
    return relative_tolerance(type, min(case.magnitude**2, case.softcap or np.inf)) + record + ROUNDING[type] / 2


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, type: str, device: Device) -> None:
    arrays = typed(make_inputs(case), type)
    output = KVARN_ATTENTION.load_oracle()(**arrays, **case.attributes)[0]
    got = kvarn_attention(device, arrays, case.attributes, type)[0]
    check_output(got, output, kvarn_tolerance(case, type))


def test_other_rows_may_hold_no_numbers(device: Device) -> None:
    """A block of new tokens ends with the row: NaNs of the next row must not enter it, not even with weight 0."""
    case = kvarn("rows", Row(0, 40), Row(0, 40))
    arrays = typed(make_inputs(case), "float16")
    wanted = kvarn_attention(device, arrays, case.attributes, "float16")[0][:40]
    broken = {name: arrays[name].copy() for name in ("key", "value")}
    for array in broken.values():
        array[40:] = np.nan
    got = kvarn_attention(device, arrays | broken, case.attributes, "float16")[0][:40]
    np.testing.assert_array_equal(got, wanted)
