"""Tests of GreedyLinear through ONNX Runtime: against BlockLinear, its oracle, and rows that have no largest logit."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.exporters.weights.panels import pack_panels
from tests.support.ops.greedy_linear_cases import CASES, Case, expected, make_inputs
from tests.support.ops.op_session import run_op

pytestmark = pytest.mark.native


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_are_those_of_block_linear_and_tokens_their_largest(case: Case, dot_isa: str) -> None:
    arrays = make_inputs(case)
    logits, tokens = run_op("GreedyLinear", arrays, **case.attributes)
    plain = {name: array for name, array in arrays.items() if name != "wanted"}
    (wanted,) = run_op("BlockLinear", plain, width=case.rows, **case.attributes)
    np.testing.assert_array_equal(logits, wanted[0])
    np.testing.assert_array_equal(tokens, logits.argmax(-1) if len(logits) else [])
    np.testing.assert_allclose(logits, expected(case, arrays)[0], atol=2e-3 * max(np.abs(logits).max(initial=0), 1))


@pytest.mark.parametrize("threads", [1, 2])
def test_tokens_are_the_same_when_no_logits_are_written(threads: int, dot_isa: str) -> None:
    case = CASES[2]
    arrays = make_inputs(case)
    _, tokens = run_op("GreedyLinear", arrays, threads=threads, **case.attributes)
    arrays["wanted"][0] = 0
    np.testing.assert_array_equal(run_op("GreedyLinear", arrays, threads=threads, **case.attributes)[1], tokens)


@pytest.mark.parametrize("exact", [0, 1])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_row_with_a_number_that_is_none_has_no_token_and_its_neighbours_do(number: float, exact: int) -> None:
    case = Case(3, 96, 200, 4, 32, {"exact": exact})
    arrays = make_inputs(case)
    _, wanted = run_op("GreedyLinear", arrays, **case.attributes)
    arrays["x"][0, 1, 3] = number
    _, tokens = run_op("GreedyLinear", arrays, **case.attributes)
    assert tokens.tolist() == [wanted[0], -1, wanted[2]]


def test_equal_logits_and_those_below_zero() -> None:
    """The last panel has rows of zeros that are none of the matrix, and more than one row is the largest."""
    codes, scales = np.full((70, 32), 8, np.uint8), np.ones((70, 1), np.float16)
    codes[:, 0] = 0  # -8
    codes[[40, 41, 69], 0] = 4  # -4
    x = np.zeros((1, 2, 32), np.float32)
    x[0, 0, 0] = 1
    arrays = {"x": x, "panels": pack_panels(codes, scales, None, 4, 32), "wanted": np.ones(1, np.int64)}
    logits, tokens = run_op("GreedyLinear", arrays, rows=70, columns=32, bits=4, block=32)
    assert logits[0].max() == -4 and tokens.tolist() == [40, 0]


def test_what_does_not_fit_is_refused() -> None:
    case = CASES[1]
    for name, shape in {"x": (2, 5, 96), "wanted": (2,), "bias": (999,), "norm": (95,), "panels": (4, 100)}.items():
        arrays = make_inputs(case)
        arrays[name] = np.zeros(shape, arrays[name].dtype)
        with pytest.raises(Exception, match=f"{name}: got shape"):
            run_op("GreedyLinear", arrays, **case.attributes)
