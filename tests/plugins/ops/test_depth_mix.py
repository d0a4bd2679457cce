"""Tests of DepthMix through ONNX Runtime against its oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.ops.depth_mix_cases import CASES, Case, expected, make_inputs
from tests.support.ops.op_session import run_op

pytestmark = pytest.mark.native


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, isa: str) -> None:
    arrays = make_inputs(case)
    wanted = expected(case, arrays)
    for threads in (2, 1):
        (got,) = run_op("DepthMix", arrays, threads, **case.attributes)
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=0, atol=case.tolerance)


def test_threads_and_neighbours_change_no_bit(isa: str) -> None:
    case = next(case for case in CASES if case.name == "parallel")
    arrays = make_inputs(case)
    (two,), (one,) = (run_op("DepthMix", arrays, threads, **case.attributes) for threads in (2, 1))
    np.testing.assert_array_equal(two, one)
    (alone,) = run_op("DepthMix", {name: x[57:58] for name, x in arrays.items()}, **case.attributes)
    np.testing.assert_array_equal(alone[0], one[57])


def test_without_sources_the_value_stays(isa: str) -> None:
    case = Case(name="copy", sources=0, magnitude=40.0)
    arrays = make_inputs(case)
    np.testing.assert_array_equal(run_op("DepthMix", arrays, **case.attributes)[0], arrays["value"])


def test_scores_that_no_exponential_holds(isa: str) -> None:
    case = Case(name="extreme", sources=3, magnitude=1e4)
    arrays = make_inputs(case)
    (got,) = run_op("DepthMix", arrays, **case.attributes)
    np.testing.assert_allclose(got, expected(case, arrays), rtol=0, atol=1e-6)  # all weight on one layer


BAD: dict[str, Any] = {
    r"query: got 3 heads, expected a multiple of the key's 2": {"query": np.zeros((3, 3, 64), np.float32)},
    r"query: got 0 heads": {"query": np.zeros((3, 0, 64), np.float32)},
    r"key: got shape \[2, 2, 64\], expected \[T, Hkv, D\] = \[3, any, 64\]": {"key": np.zeros((2, 2, 64), np.float32)},
    r"value: got shape \[3, 1, 64\], expected \[T, Hkv, Dv\]": {"value": np.zeros((3, 1, 64), np.float32)},
    r"query and value: got an empty head": {"value": np.zeros((3, 2, 0), np.float32)},
    r"sources: got 3 tensors, expected a key and a value of each source": {"sources.3": None},
    r"sources\[0\]: got shape \[3, 4, 64\], expected \[T, Hkv, D\] = \[3, 2, 64\]": {
        "sources.0": np.zeros((3, 4, 64), np.float32)
    },
    r"sources\[3\]: got shape \[3, 2, 32\], expected \[T, Hkv, Dv\]": {"sources.3": np.zeros((3, 2, 32), np.float32)},
    r"scale: got inf, expected a finite number": {"scale": float("inf")},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message: str) -> None:
    case = Case(name="errors")
    arrays, attributes = make_inputs(case), dict(case.attributes)
    for name, value in BAD[message].items():
        (arrays if name in arrays else attributes)[name] = value
    arrays = {name: x for name, x in arrays.items() if x is not None}
    with pytest.raises(Exception, match="DepthMix: " + message):
        run_op("DepthMix", arrays, **attributes)
