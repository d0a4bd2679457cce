"""Tests of SplitQkv through ONNX Runtime against its oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from enginewright.plugins.ops.split_qkv import SPLIT_QKV
from tests.support.ops.op_session import run_op
from tests.support.ops.split_qkv_cases import CASES, Case, make_inputs

pytestmark = pytest.mark.native


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, isa: str) -> None:
    arrays = make_inputs(case)
    expected = SPLIT_QKV.load_oracle()(**arrays, **case.attributes)
    for threads in (2, 1):
        for got, wanted in zip(run_op("SplitQkv", arrays, threads, **case.attributes), expected, strict=True):
            assert got.shape == wanted.shape
            # a few float32 roundings of numbers near 4
            np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-6)


def test_a_token_is_bitwise_the_same_alone(isa: str) -> None:
    case = next(case for case in CASES if case.name == "parallel")
    arrays = make_inputs(case)
    alone = {name: x[:, 57:58] if x.ndim == 3 else x for name, x in arrays.items()}
    together = run_op("SplitQkv", arrays, **case.attributes)
    for one, all_of_them in zip(run_op("SplitQkv", alone, **case.attributes), together, strict=True):
        np.testing.assert_array_equal(one[0], all_of_them[57])


BAD: dict[str, Any] = {
    r"packed: got shape \[1, 3, 511\], expected .* = \[1, any, 512\]": {"packed": np.zeros((1, 3, 511), np.float32)},
    r"packed: got shape \[2, 3, 512\]": {"packed": np.zeros((2, 3, 512), np.float32)},
    r"cos: got shape \[1, 2, 32\], expected \[1, T, R\] = \[1, 3, any\]": {"cos": np.zeros((1, 2, 32), np.float32)},
    r"sin: got shape \[1, 3, 31\], expected \[1, T, R\] = \[1, 3, 32\]": {"sin": np.zeros((1, 3, 31), np.float32)},
    r"cos: got R = 33, expected at most half of D = 64": dict.fromkeys(
        ("cos", "sin"), np.zeros((1, 3, 33), np.float32)
    ),
    r"sin: got only one of the two, expected both or neither of it and cos": {"sin": None},
    r"key_norm: got only one of the two, expected both or neither of it and query_norm": {"key_norm": None},
    r"query_norm: got shape \[63\], expected \[D\] = \[64\]": {"query_norm": np.zeros(63, np.float32)},
    r"kv_heads: got 0, expected 1 to 65536": {"kv_heads": 0},
    r"head_dim: got 4611686018427387904, expected 1 to 65536": {"head_dim": 1 << 62},
    r"epsilon: got -1\.0+, expected 0 or more": {"epsilon": -1.0},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message: str) -> None:
    case = Case(name="errors", norm=True)
    arrays, attributes = make_inputs(case), dict(case.attributes)
    for name, value in BAD[message].items():
        (arrays if name in arrays else attributes)[name] = value
    arrays = {name: x for name, x in arrays.items() if x is not None}
    with pytest.raises(Exception, match="SplitQkv: " + message):
        run_op("SplitQkv", arrays, **attributes)
