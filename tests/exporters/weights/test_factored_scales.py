"""Tests of scales that are products: what they stand for, and those of several matrices in one."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.exporters.weights.factored_scales import FactoredScales, join_factored
from enginewright.exporters.weights.weight import QuantizedRows, Weight, concatenate, quantized_weight


def products(rows: int, seed: int, *, minima: bool) -> FactoredScales:
    """Random ones of a matrix [rows, 512] in groups of 32."""
    rng = np.random.default_rng(seed)
    scales, lowest = rng.integers(-128, 128, (2, rows, 16)).astype(np.int8)
    factors = rng.uniform(-1, 1, (rows, 4 if minima else 2)).astype(np.float16)
    return FactoredScales(scales=scales, factors=factors, minima=lowest if minima else None)


@pytest.mark.parametrize("minima", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_scales_and_minima_are_those_of_their_columns(rows: int, minima: bool) -> None:
    made = products(rows, 0, minima=minima)
    scales, lowest = made.restore()
    assert scales.shape == (rows, 16) and scales.dtype == np.float32
    assert (lowest is not None) is minima
    step = 2 if minima else 1
    for row in range(rows):
        for group in range(16):
            place = group // 8 * step
            assert scales[row, group] == np.float32(made.factors[row, place]) * made.scales[row, group]
            if lowest is not None and made.minima is not None:
                assert lowest[row, group] == np.float32(made.factors[row, place + 1]) * made.minima[row, group]


@pytest.mark.parametrize("minima", [False, True])
def test_those_of_several_matrices_follow_each_other(minima: bool) -> None:
    parts = [products(rows, rows, minima=minima) for rows in (3, 1, 4)]
    scales, lowest = join_factored(parts).restore()
    np.testing.assert_array_equal(scales, np.concatenate([part.restore()[0] for part in parts]))
    if lowest is not None:
        np.testing.assert_array_equal(lowest, np.concatenate([part.restore()[1] for part in parts]))


def rows_of(made: FactoredScales, *, factored: bool) -> Weight:
    """A matrix of codes 0 with these scales."""
    scales = made.restore()[0]
    rows = QuantizedRows(
        bits=4,
        group_size=32,
        load=lambda: (np.zeros((len(scales), 512), np.int8), scales),
        factored=(lambda: made) if factored else None,
    )
    return quantized_weight((len(scales), 512), rows)


def test_a_joined_matrix_has_products_if_all_its_parts_have() -> None:
    parts = [products(rows, rows, minima=False) for rows in (2, 3)]
    joined = concatenate([rows_of(part, factored=True) for part in parts], 0).quantized
    assert joined is not None and joined.factored is not None
    np.testing.assert_array_equal(joined.factored().restore()[0], joined.load()[1])
    mixed = concatenate([rows_of(parts[0], factored=True), rows_of(parts[1], factored=False)], 0).quantized
    assert mixed is not None and mixed.factored is None
