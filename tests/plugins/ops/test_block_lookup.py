"""Tests of BlockLookup through ONNX Runtime against its oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from enginewright.plugins.oracles.block_linear import block_lookup
from tests.support.ops.block_lookup_cases import CASES, Case, make_inputs
from tests.support.ops.op_session import run_op

pytestmark = pytest.mark.native


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case) -> None:
    arrays = make_inputs(case)
    (got,) = run_op("BlockLookup", arrays, **case.attributes)
    np.testing.assert_allclose(got, block_lookup(**arrays, **case.attributes), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("ids", "attributes", "message"),
    [
        ([[0, 40]], {}, r"ids\[1\]: got 40, expected 0 to 39"),
        ([[-1]], {}, r"ids\[0\]: got -1, expected 0 to 39"),
        ([[0], [1]], {}, r"ids: got shape \[2, 1\]"),
        ([[0]], {"columns": 97}, "panels: got shape"),
        ([[0]], {"bits": 7}, "bits: got 7"),
    ],
)
def test_what_does_not_fit_is_refused(ids: list[list[int]], attributes: dict[str, Any], message: str) -> None:
    case = Case(40, 96, 4, 32)
    arrays = {**make_inputs(case), "ids": np.array(ids, np.int64)}
    with pytest.raises(Exception, match=message):
        run_op("BlockLookup", arrays, **{**case.attributes, **attributes})
