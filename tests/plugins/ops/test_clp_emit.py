"""Tests of ClpEmit through ONNX Runtime against its oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from enginewright.plugins.ops.clp_emit import CLP_EMIT
from tests.support.ops.clp_cases import CASES, Case, always, make_inputs
from tests.support.ops.op_session import run_op

pytestmark = pytest.mark.native


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, isa: str) -> None:
    for arrays in (make_inputs(case), always(make_inputs(case, 1), case.k - 1)):
        expected = CLP_EMIT.load_oracle()(**arrays, **case.attributes)
        for threads in (2, 1):
            for got, wanted in zip(run_op("ClpEmit", arrays, threads, **case.attributes), expected, strict=True):
                np.testing.assert_array_equal(got, wanted)  # no two logits or classes are within a rounding here


def test_the_cases_emit_every_length() -> None:
    case = next(case for case in CASES if case.name == "many_rows")
    assert set(run_op("ClpEmit", make_inputs(case), **case.attributes)[1]) == {1, 2, 3, 4}


@pytest.mark.parametrize("codes", [False, True], ids=["float32", "int8"])
def test_a_row_does_not_depend_on_the_others(codes: bool, isa: str) -> None:
    """Heads whose logits are all but equal: one rounding more or less would show."""
    case = Case(name="ties", rows=15, vocab=700, codes=codes)
    arrays = make_inputs(case)
    for name in ("out_weight", "out_codes", "out_scales", "out_bias"):
        if name in arrays:
            arrays[name][:, 1:] = arrays[name][:, :1]
    if not codes:
        arrays["out_weight"] += (np.random.default_rng(1).standard_normal(arrays["out_weight"].shape) * 1e-7).astype(
            "f"
        )
    arrays = always(arrays, 2)
    tokens, counts = run_op("ClpEmit", arrays, **case.attributes)
    assert (counts == 3).all()
    assert (tokens[:, 1:] == 0).all() == codes  # codes: exact ties, the lowest id
    for row in range(case.rows):
        alone = {**arrays, "hidden": arrays["hidden"][row : row + 1], "greedy": arrays["greedy"][row : row + 1]}
        np.testing.assert_array_equal(run_op("ClpEmit", alone, **case.attributes)[0][0], tokens[row])
    np.testing.assert_array_equal(run_op("ClpEmit", arrays, 1, **case.attributes)[0], tokens)


def test_only_a_rows_last_token_emits_where_rows_are_given(isa: str) -> None:
    case = Case(name="rows", rows=7)
    arrays = always(make_inputs(case), 2)
    arrays["query_starts"] = np.array([0, 1, 4, 4, 9, 12], np.int32)  # the third row has no new tokens
    arrays["sample_rows"] = np.array([0, 1, 2, 3, 5, 8, 10])
    tokens, counts = run_op("ClpEmit", arrays, **case.attributes)
    assert counts.tolist() == [3, 1, 1, 3, 1, 3, 1]
    np.testing.assert_array_equal(tokens, CLP_EMIT.load_oracle()(**arrays, **case.attributes)[0])


def test_what_is_not_finite_is_not_emitted(isa: str) -> None:
    case = Case(name="bad", rows=6, vocab=600)
    arrays = always(make_inputs(case), 2)
    arrays["hidden"][1, 3] = np.nan
    arrays["greedy"][2] = -1
    arrays["out_bias"][0, 5] = -np.inf  # a banned token is no harm
    expected = CLP_EMIT.load_oracle()(**arrays, **case.attributes)
    tokens, counts = run_op("ClpEmit", arrays, **case.attributes)
    assert counts.tolist() == [3, 1, 1, 3, 3, 3]
    np.testing.assert_array_equal(tokens, expected[0])
    for value, spoilt in ((np.nan, 1), (np.inf, 1), (-np.inf, 600)):
        arrays["out_bias"][1, 600 - spoilt :] = value
        assert run_op("ClpEmit", arrays, **case.attributes)[1].tolist() == [2, 1, 1, 2, 2, 2]
    arrays["up_bias"][0, 0] = np.nan
    assert run_op("ClpEmit", arrays, **case.attributes)[1].tolist() == [1] * 6


@pytest.mark.parametrize(("scores", "tau", "count"), [([0, 0, 0], 0.3, 1), ([-1, 2, 2], 0.3, 2), ([-1, 2, 2], 0.5, 1)])
def test_the_first_class_among_equals(scores: list[float], tau: float, count: int, isa: str) -> None:
    arrays = make_inputs(Case(name="tie"))
    arrays |= {"classifier_weight": np.zeros((3, 48), np.float32), "classifier_bias": np.array(scores, np.float32)}
    assert (run_op("ClpEmit", arrays, k=3, tau=tau)[1] == count).all()


F = np.float32
BAD: dict[str, dict[str, Any]] = {
    r"greedy: got shape \[4\], expected \[N\] = \[5\]": {"greedy": np.zeros(4, np.int64)},
    r"classifier_weight: got shape \[3, 47\], expected \[classes, d\] = \[any, 48\]": {
        "classifier_weight": np.zeros((3, 47), F)
    },
    r"classifier_weight: got no classes, expected 1 or more": {"classifier_weight": np.zeros((0, 48), F)},
    r"classifier_bias: got shape \[2\], expected \[classes\] = \[3\]": {"classifier_bias": np.zeros(2, F)},
    r"up_weight: got shape \[1, 24, 48\], expected \[k - 1, h, d\] = \[2, any, 48\]": {
        "up_weight": np.zeros((1, 24, 48), F)
    },
    r"up_bias: got shape \[2, 23\], expected \[k - 1, h\] = \[2, 24\]": {"up_bias": np.zeros((2, 23), F)},
    r"out_bias: got V = 0, expected 1 or more": {"out_bias": np.zeros((2, 0), F)},
    r"out_weight: got shape \[2, 1000, 24\], expected \[k - 1, V, h\] = \[2, 999, 24\]": {
        "out_bias": np.zeros((2, 999), F)
    },
    r"out_weight: got neither, expected either it or out_codes": {"out_weight": None},
    r"out_weight: got both, expected either it or out_codes": {"out_codes": np.zeros((2, 1000, 24), np.int8)},
    r"out_scales: got only one of the two, expected both or neither of it and out_codes": {
        "out_scales": np.zeros((2, 1000), F)
    },
    r"query_starts: got only one of the two, expected both or neither of it and sample_rows": {
        "sample_rows": np.zeros(5, np.int64)
    },
    r"k: got 1, expected 2 to 16": {"k": 1},
    r"k: got 17, expected 2 to 16": {"k": 17},
    r"tau: got NaN, expected a number": {"tau": float("nan")},
    r"activation: got 2, expected 0 or 1": {"activation": 2},
    r"residual: got -1, expected 0 or 1": {"residual": -1},
    r"up_weight: got h = 24, expected d = 48, because residual = 1": {"residual": 1},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message: str) -> None:
    case = Case(name="errors")
    arrays: dict[str, Any] = {**make_inputs(case), **dict.fromkeys(("out_codes", "out_scales", "sample_rows"))}
    attributes: dict[str, Any] = dict(case.attributes)
    for name, value in BAD[message].items():
        (arrays if name in arrays else attributes)[name] = value
    arrays = {name: x for name, x in arrays.items() if x is not None}
    with pytest.raises(Exception, match="ClpEmit: " + message):
        run_op("ClpEmit", arrays, **attributes)
