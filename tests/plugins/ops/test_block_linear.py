"""Tests of BlockLinear through ONNX Runtime against its oracle."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from enginewright.exporters.weights.panels import pack_bfloat16, pack_panels, panel_bytes
from enginewright.plugins.ops.block_linear import NUMBER_BITS
from enginewright.plugins.oracles.block_linear import unpack_panels
from enginewright.runtime.errors import ExportError
from tests.support.ops.block_linear_cases import CASES, Case, assert_close, expected, make_inputs
from tests.support.ops.op_session import run_op

pytestmark = pytest.mark.native
NUMBERS = [case for case in CASES if case.bits == NUMBER_BITS and case.tokens == 29]
"""Of bfloat16, with rounded and with exact activations."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, dot_isa: str) -> None:
    arrays = make_inputs(case)
    (got,) = run_op("BlockLinear", arrays, **case.attributes)
    exact = bool(case.attributes.get("exact"))
    assert_close(got, expected(case, arrays), exact=exact, most=1e-3, share=0.98)


@pytest.mark.parametrize("case", [CASES[2], CASES[5], CASES[-2], CASES[-1], *NUMBERS], ids=lambda case: case.name)
def test_a_row_is_the_same_in_any_company_and_on_any_number_of_threads(case: Case, dot_isa: str) -> None:
    arrays = make_inputs(case)
    (together,) = run_op("BlockLinear", arrays, **case.attributes)
    for row in range(case.tokens):
        alone = {**arrays, "x": arrays["x"][:, row : row + 1]}
        (got,) = run_op("BlockLinear", alone, threads=1, **case.attributes)
        np.testing.assert_array_equal(got[0, 0], together[0, row])


@pytest.mark.parametrize("bits", [4, NUMBER_BITS])
@pytest.mark.parametrize("exact", [0, 1])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_row_with_a_number_that_is_none_has_no_finite_result_and_its_neighbours_do(
    number: float, exact: int, bits: int, dot_isa: str
) -> None:
    case = Case(4, 96, 48, bits, 32, {"exact": exact})
    arrays = make_inputs(case)
    (wanted,) = run_op("BlockLinear", arrays, **case.attributes)
    arrays["x"][0, 1, 70] = number
    (got,) = run_op("BlockLinear", arrays, **case.attributes)
    assert not np.isfinite(got[0, 1]).any()
    np.testing.assert_array_equal(got[0, [0, 2, 3]], wanted[0, [0, 2, 3]])


@pytest.mark.parametrize("exact", [0, 1])
def test_a_weight_that_is_no_number_is_seen_in_its_own_output_alone(exact: int, dot_isa: str) -> None:
    rows = np.random.default_rng(0).normal(0, 1, (40, 70)).astype(np.float32)
    rows[21, 69], rows[3, 0] = np.nan, -np.inf
    case = Case(3, 70, 40, NUMBER_BITS, 32, {"exact": exact})
    arrays = {**make_inputs(case), "panels": pack_bfloat16(rows)}
    (got,) = run_op("BlockLinear", arrays, **case.attributes)
    assert np.isnan(got[0, :, 21]).all() and np.isinf(got[0, :, 3]).all()
    assert np.isfinite(np.delete(got, (3, 21), axis=2)).all()


def test_activations_are_rounded_to_bfloat16_unless_they_are_exact(dot_isa: str) -> None:
    """Of numbers in the middle between two of bfloat16, the even one is taken."""
    x = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-7 + 2.0**-9, -3.0 - 2.0**-7], np.float32).reshape(1, 4, 1)
    case = Case(4, 1, 1, NUMBER_BITS, 32)
    arrays = {"x": x, "panels": pack_bfloat16(np.ones((1, 1), np.float32))}
    (rounded,) = run_op("BlockLinear", arrays, **case.attributes)
    np.testing.assert_array_equal(rounded, x.astype(ml_dtypes.bfloat16).astype(np.float32))
    (exact,) = run_op("BlockLinear", arrays, **{**case.attributes, "exact": 1})
    np.testing.assert_array_equal(exact, x)


def test_tiny_and_zero_rows_are_zeros() -> None:
    case = Case(2, 64, 32, 4, 32)
    arrays = make_inputs(case)
    arrays["x"][0, 0], arrays["x"][0, 1] = 0.0, 1e-42
    (got,) = run_op("BlockLinear", arrays, **case.attributes)
    np.testing.assert_array_equal(got, np.zeros_like(got))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("block", "minima"), [(16, True), (32, False), (96, True), (224, False)])
def test_panels_restore_what_was_packed(bits: int, block: int, minima: bool) -> None:
    rng = np.random.default_rng(bits)
    n, k = 37, 200
    codes = rng.integers(0, 1 << bits, (n, k)).astype(np.uint8)
    scales = rng.uniform(-1, 1, (n, -(-k // block))).astype(np.float16)
    lowest = rng.uniform(-1, 1, scales.shape).astype(np.float16) if minima else None
    panels = pack_panels(codes, scales, lowest, bits, block)
    assert panels.shape == (3, panel_bytes(k, bits, block, scale_bits=16, minima=minima))
    wide = np.repeat(scales.astype(np.float32), block, axis=1)[:, :k]
    offset = -float(1 << (bits - 1)) * wide if lowest is None else np.repeat(lowest.astype(np.float32), block, 1)[:, :k]
    restored = unpack_panels(panels, n, k, bits, block, scale_bits=16, minima=minima)
    np.testing.assert_allclose(restored, codes * wide + offset, atol=1e-6 * (1 << bits))


@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 32), (37, 201)])
def test_panels_of_bfloat16_hold_the_nearest_numbers(n: int, k: int) -> None:
    rows = np.random.default_rng(n).normal(0, 1, (n, k)).astype(np.float32)
    panels = pack_bfloat16(rows)
    assert panels.shape == (-(-n // 16), panel_bytes(k, NUMBER_BITS, 32, scale_bits=16, minima=False))
    restored = unpack_panels(panels, n, k, NUMBER_BITS, 32, scale_bits=16, minima=False)
    np.testing.assert_array_equal(restored, rows.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_a_number_beyond_the_largest_of_bfloat16_is_refused() -> None:
    with pytest.raises(
        ExportError, match=r"got a number of 3.403e\+38, expected at most 3.39e\+38, .*; do --weights float32"
    ):
        pack_bfloat16(np.full((1, 1), np.finfo(np.float32).max))
    assert np.isnan(
        unpack_panels(pack_bfloat16(np.full((1, 1), np.nan)), 1, 1, 16, 32, scale_bits=16, minima=False)
    ).all()


@pytest.mark.parametrize(
    ("changes", "attributes", "message"),
    [
        (
            {"x": (1, 11, 95)},
            {},
            r"x: got shape \[1, 11, 95\], expected \[1, T, columns\] or \[T, heads, columns / heads\]",
        ),
        ({"x": (11, 2, 47)}, {}, r"x: got shape \[11, 2, 47\]"),
        ({"x": (2, 11, 96)}, {}, r"x: got shape \[2, 11, 96\]"),
        ({"panels": (4, 100)}, {}, r"panels: got shape \[4, 100\]"),
        ({"bias": (63,)}, {}, r"bias: got shape \[63\]"),
        ({"residual": (1, 10, 64)}, {}, r"residual: got shape \[1, 10, 64\]"),
        ({"norm": (64,)}, {}, r"norm: got shape \[64\]"),
        ({}, {"bits": 7}, "bits: got 7, expected 2, 3, 4, 5, 6, 8, or 16 for bfloat16"),
        ({}, {"bits": 12}, "bits: got 12, expected 2, 3, 4, 5, 6, 8, or 16 for bfloat16"),
        ({}, {"bits": 16, "block": 64}, "block: got 64, expected 32 with numbers of 16 bits, which have no scales"),
        ({}, {"bits": 16, "minima": 1}, "minima: got 1, expected 0 with numbers of 16 bits"),
        ({}, {"block": 48}, "block: got 48, expected 16 or a multiple of 32"),
        ({}, {"scale_bits": 24}, "scale_bits: got 24, expected 8, 16 or 32"),
        ({}, {"scale_bits": 8, "block": 96}, "block: got 96, expected a divisor of 256 with scales of 8 bits"),
        ({}, {"scale_bits": 8, "minima": 2}, "minima: got 2, expected 0 or 1 with scales of 8 bits"),
        ({}, {"minima": 3}, "minima: got 3"),
        ({}, {"epsilon": -1.0}, "epsilon: got -1"),
        ({}, {"width": 32}, "width: got 32, expected the number of rows"),
        ({}, {"gate": 1}, "width: got 64, expected half of the rows"),
        ({}, {"gate": 1, "rows": 50, "width": 25}, "rows: got 50, expected a multiple of 32 with a gate"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], attributes: dict[str, Any], message: str) -> None:
    case = Case(11, 96, 64, 4, 32, {"bias": True, "residual": True, "norm": True})
    arrays = make_inputs(case)
    for name, shape in changes.items():
        arrays[name] = np.zeros(shape, arrays[name].dtype)
    with pytest.raises(Exception, match=message):
        run_op("BlockLinear", arrays, **{**case.attributes, **attributes})
