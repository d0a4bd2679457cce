"""Tests of ExpertMixture through ONNX Runtime against its oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.ops.block_linear_cases import assert_close
from tests.support.ops.expert_mixture_cases import CASES, LONG, Case, expected, make_inputs
from tests.support.ops.op_session import run_op

pytestmark = pytest.mark.native


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, dot_isa: str) -> None:
    arrays = make_inputs(case)
    (got,) = run_op("ExpertMixture", arrays, **case.attributes)
    exact = bool(case.attributes.get("exact"))
    assert_close(got, expected(case, arrays), exact=exact, most=4e-3, share=0.9)


@pytest.mark.parametrize("case", [CASES[3], CASES[5], CASES[9]], ids=lambda case: case.name)
def test_a_row_is_the_same_in_any_company_and_on_any_number_of_threads(case: Case, dot_isa: str) -> None:
    arrays = make_inputs(case)
    (together,) = run_op("ExpertMixture", arrays, **case.attributes)
    for row in range(case.tokens):
        alone = {**arrays, **{name: arrays[name][row : row + 1] for name in ("x", "ids", "weights")}}
        (got,) = run_op("ExpertMixture", alone, threads=1, **case.attributes)
        np.testing.assert_array_equal(got[0], together[row])


def test_more_visits_than_a_round_has_are_the_same_as_in_two_calls() -> None:
    arrays = make_inputs(LONG)
    (whole,) = run_op("ExpertMixture", arrays, **LONG.attributes)
    for part in (slice(0, 1000), slice(1000, None)):
        some = {**arrays, **{name: arrays[name][part] for name in ("x", "ids", "weights")}}
        (got,) = run_op("ExpertMixture", some, **LONG.attributes)
        np.testing.assert_array_equal(got, whole[part])


def test_experts_are_summed_in_the_order_of_a_row_s_own_list() -> None:
    case = Case(1, 64, 32, 3, 3)
    arrays = make_inputs(case)
    arrays["ids"], arrays["weights"] = np.array([[2, 0, 1]]), np.array([[1.0, 3e7, -3e7]], np.float32)
    (got,) = run_op("ExpertMixture", arrays, **case.attributes)
    total = np.zeros(case.columns, np.float32)
    for k in range(3):
        one = {**arrays, "ids": arrays["ids"][:, k : k + 1], "weights": np.ones((1, 1), np.float32)}
        (alone,) = run_op("ExpertMixture", one, **case.attributes)
        total += arrays["weights"][0, k] * alone[0]
    np.testing.assert_array_equal(got[0], total)


def test_a_row_with_a_number_that_is_none_has_no_finite_result_and_its_neighbours_do(dot_isa: str) -> None:
    case = Case(4, 64, 32, 3, 2, gate=4, extra={"slope": 1.702, "limit": 7.0})
    arrays = make_inputs(case)
    (wanted,) = run_op("ExpertMixture", arrays, **case.attributes)
    arrays["x"][1, 40] = np.nan
    (got,) = run_op("ExpertMixture", arrays, **case.attributes)
    assert not np.isfinite(got[1]).any()
    np.testing.assert_array_equal(got[[0, 2, 3]], wanted[[0, 2, 3]])


@pytest.mark.parametrize(
    ("changes", "attributes", "message"),
    [
        ({"ids": np.array([[0, 1], [2, 3], [0, 4], [1, 1]])}, {}, r"ids\[2, 1\]: got 4, expected 0 to 3"),
        ({"ids": np.array([[-1, 1], [2, 3], [0, 1], [1, 1]])}, {}, r"ids\[0, 0\]: got -1, expected 0 to 3"),
        ({"ids": np.zeros((3, 2), np.int64)}, {}, r"ids: got shape \[3, 2\]"),
        ({"weights": np.zeros((4, 3), np.float32)}, {}, r"weights: got shape \[4, 3\]"),
        ({"x": np.zeros((4, 63), np.float32)}, {}, r"x: got shape \[4, 63\]"),
        ({"up": np.zeros((4, 6, 9), np.int8)}, {}, r"up: got shape \[4, 6, 9\]"),
        ({"down": np.zeros((3, 4, 608), np.int8)}, {}, r"down: got shape \[3, 4, 608\]"),
        ({"up_bias": np.zeros((4, 48), np.float32)}, {}, r"up_bias: got shape \[4, 48\]"),
        ({"down_bias": np.zeros((4, 96), np.float32)}, {}, r"down_bias: got shape \[4, 96\]"),
        ({}, {"inner": 40}, "inner: got 40, expected a multiple of 16"),
        ({}, {"gate": 0}, "gate: got 0, expected 1 to 4"),
        ({}, {"limit": 0.0}, "limit: got 0.000000, expected above 0"),
        ({}, {"up_bits": 7}, "up_bits: got 7, expected 2, 3, 4, 5, 6, 8, or 16 for bfloat16"),
        ({}, {"down_block": 48}, "down_block: got 48, expected 16 or a multiple of 32"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], attributes: dict[str, Any], message: str) -> None:
    case = Case(4, 64, 48, 4, 2, extra={"bias": True})
    with pytest.raises(Exception, match=message):
        run_op("ExpertMixture", {**make_inputs(case), **changes}, **{**case.attributes, **attributes})
