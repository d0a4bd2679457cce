"""Tests of PiSO's solver against an example's known numbers, an independent enumeration of all cells, and dense grids of scales."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from enginewright.exporters.methods.piso import solver
from enginewright.exporters.methods.piso import sweep as sweep_module
from enginewright.exporters.methods.piso.solver import Array, int_grid, solve
from enginewright.exporters.methods.piso.sweep import sweep_in_chunks
from enginewright.runtime.errors import ExportError
from tests.support.exporters.piso_reference import GROUPS_OF_4, example

pytestmark = pytest.mark.native


@pytest.fixture(params=["library", "chunks", "chunks of 3"], autouse=True)
def sweep(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs with both sweeps, and with chunks that split what belongs together."""
    if request.param != "library":
        monkeypatch.setattr(solver, "sweep_on_cpu", sweep_in_chunks)
    if request.param == "chunks of 3":
        monkeypatch.setattr(sweep_module, "_CHUNK", 3)
        monkeypatch.setattr(sweep_module, "_EVENT_BYTES", 1000)
    name: str = request.param
    return name


def error_of(w: Array, h: Array, scale: float, codes: Array) -> float:
    return float((w - scale * codes) @ h @ (w - scale * codes))


@pytest.mark.parametrize(
    ("grid", "free", "diagonal", "dense", "codes"),
    [
        (
            int_grid(2),
            (0.9151929673, 1.6190786935),
            (0.5563374604, 0.6787002952),
            (0.5451263960, 0.6481943604),
            [1, 0, -1, 1, 1, -2, -2, 1],
        ),
        (
            int_grid(2, narrow=True),
            (0.9151929673, 1.6190786935),
            (0.6243769135, 0.6498324305),
            (0.5451263960, 0.6362586493),
            [1, 0, -1, 1, 1, -1, -1, 1],
        ),
        (
            int_grid(4),
            (0.2264352565, 0.0265342575),
            (0.1768221847, 0.0123638717),
            (0.1764477087, 0.0123410958),
            [7, -1, -3, 2, 4, -5, -5, 6],
        ),
    ],
    ids=["int2", "int2 narrow", "int4"],
)
def test_reference_values(grid: Array, free: Any, diagonal: Any, dense: Any, codes: list[int]) -> None:
    w, _, _, h = example()
    for metric, (scale, error) in ((np.ones(8), free), (h.diagonal().copy(), diagonal), (h, dense)):
        found = solve(w[None], metric, grid=grid)
        assert found.scales[0, 0] == pytest.approx(scale, abs=1e-9)
        assert error_of(w, h, found.scales[0, 0], found.codes[0]) == pytest.approx(error, abs=1e-9)
    assert found.codes[0].tolist() == codes
    assert found.errors is not None and found.errors[0] == pytest.approx(dense[1], abs=1e-9)


@pytest.mark.parametrize(
    ("bits", "scale", "error"),
    [(2, -0.5451263960, 0.2269440167), (3, -0.2728844560, 0.0476582212), (4, 0.1764477087, 0.0123410958)],
)
def test_reference_values_of_signed_scales(bits: int, scale: float, error: float) -> None:
    w, _, _, h = example()
    found = solve(w[None], h, grid=int_grid(bits), signed=True)
    assert found.errors is not None
    assert (found.scales[0, 0], found.errors[0]) == pytest.approx((scale, error), abs=1e-9)
    tiny = solve(np.array([[0.8, -0.7]]), np.eye(2), grid=int_grid(4), signed=True)
    assert tiny.scales[0, 0] == pytest.approx(-0.1, abs=1e-12)
    positive = solve(np.array([[0.8, -0.7]]), np.eye(2), grid=int_grid(4))
    assert positive.scales[0, 0] == pytest.approx(0.1152941176, abs=1e-9)


@pytest.mark.parametrize(
    ("bits", "scale", "error"),
    [(2, 0.5451263960, 0.6498893279), (3, 0.4668769486, 0.1207893456), (4, 0.2546450407, 0.0344097347)],
)
def test_reference_values_of_cross_activation(bits: int, scale: float, error: float) -> None:
    w, x, rough, _ = example()
    found = solve(w[None], rough.T @ rough / 16, rough.T @ x / 16, grid=int_grid(bits))
    rest = x @ w - found.scales[0, 0] * rough @ found.codes[0]
    assert found.errors is None
    assert (found.scales[0, 0], rest @ rest / 16) == pytest.approx((scale, error), abs=1e-9)


@pytest.mark.parametrize(("bits", "sequential", "scales", "error"), GROUPS_OF_4)
def test_reference_values_of_groups(bits: int, sequential: bool, scales: Any, error: float) -> None:
    w, _, _, h = example()
    found = solve(w[None], h, grid=int_grid(bits), group_size=4, sequential=sequential)
    assert found.errors is not None
    assert (*found.scales[0], found.errors[0]) == pytest.approx((*scales, error), abs=1e-7)


def nearest(ratio: Array, grid: Array) -> Array:
    """The nearest value, the higher one among equals."""
    return grid[np.searchsorted((grid[1:] + grid[:-1]) / 2, ratio, side="right")]


def enumerate_cells(w: Array, h: Array, p: Array, grid: Array) -> float:
    """The lowest error less its constant, by rounding anew in the middle of each cell."""
    middles = (grid[1:] + grid[:-1]) / 2
    with np.errstate(divide="ignore"):
        t = np.unique((w[:, None] / middles[None]).reshape(-1))
    t = np.concatenate([[0.0], t[t > 0]])
    best = np.inf
    for low, high in itertools.pairwise(t):
        if high - low < 1e-12:
            continue
        q = nearest(w / ((low + high) / 2), grid)
        alpha, beta = q @ p, q @ h @ q
        if beta > 0:
            s = min(max(alpha / beta, low), high)
            best = min(best, s * s * beta - 2 * s * alpha)
    return best


def cases() -> Iterator[tuple[Array, Array, Array | None, Array]]:
    rng = np.random.default_rng(11)
    e2m1 = np.array([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6])
    for trial in range(120):
        d = int(rng.integers(1, 14))
        x = rng.standard_normal((int(rng.integers(1, 30)), d)) * np.exp(rng.standard_normal(d))
        rough = x + 0.2 * rng.standard_normal(x.shape)
        w = rng.standard_normal(d) * 10.0 ** rng.integers(-3, 3)
        w[rng.random(d) < 0.1] = 0
        grid = [int_grid(2), int_grid(2, True), int_grid(3), int_grid(4), int_grid(8), e2m1][trial % 6]
        yield (w, rough.T @ rough, rough.T @ x, grid) if trial % 2 else (w, x.T @ x, None, grid)


def test_enumeration_agrees() -> None:
    checked = 0
    for w, h, g, grid in cases():
        p = (h if g is None else g) @ w
        expected = enumerate_cells(w, h, p, grid)
        found = solve(w[None], h, g, grid=grid)
        s, q = float(found.scales[0, 0]), found.codes[0]
        if not expected < 0:
            continue
        checked += 1
        assert s > 0
        assert s * s * (q @ h @ q) - 2 * s * (q @ p) == pytest.approx(expected, rel=1e-12)
        assert (q == nearest(w / s, grid)).all(), "codes are those that rounding by the scale gives"
    assert checked > 100


@pytest.mark.parametrize("is_cross", [False, True], ids=["self", "cross"])
def test_groups_account_for_those_before(is_cross: bool) -> None:
    """Groups in descending order of their part of H's diagonal, each given the weights and errors of all before it."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((60, 20)) * np.exp(rng.standard_normal(20)) + rng.standard_normal((60, 1))
    rough = x + 0.3 * rng.standard_normal(x.shape) if is_cross else x
    w, h, g, grid = rng.standard_normal((3, 20)), rough.T @ rough, rough.T @ x, int_grid(3)
    found = solve(w, h, g if is_cross else None, grid=grid, group_size=5, sequential=True)
    groups = sorted((np.arange(i, i + 5) for i in range(0, 20, 5)), key=lambda part: -h.diagonal()[part].sum())
    for row, scales, codes in zip(w, found.scales, found.codes, strict=True):
        v = np.repeat(scales, 5) * codes
        for at, part in enumerate(groups):
            done = np.concatenate([[], *groups[:at]]).astype(int)
            seen = np.concatenate([done, part])
            p = g[np.ix_(part, seen)] @ row[seen] - h[np.ix_(part, done)] @ v[done]
            block, v_g = h[np.ix_(part, part)], v[part]
            assert v_g @ block @ v_g - 2 * v_g @ p == pytest.approx(
                enumerate_cells(row[part], block, p, grid), rel=1e-9
            )


def test_no_scale_of_a_grid_is_better(sweep: str) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((200, 24)) * np.exp(rng.standard_normal(24))
    h, w = x.T @ x, rng.standard_normal((6, 24))
    for bits in (2, 3, 4):
        grid = int_grid(bits)
        found = solve(w, h, grid=grid)
        assert found.errors is not None
        top = 2 * np.abs(w).max()
        for row, error in zip(w, found.errors, strict=True):
            tries = [error_of(row, h, s, nearest(row / s, grid)) for s in np.linspace(top / 4000, top, 4000)]
            assert error <= min(tries) * (1 + 1e-9)


def test_scaling_changes_what_it_must() -> None:
    w, _, _, h = example()
    rows = np.stack([w, -w, w[::-1]])
    one = solve(rows, h, grid=int_grid(3))
    np.testing.assert_allclose(solve(rows, 1e6 * h, grid=int_grid(3)).scales, one.scales, rtol=1e-12)
    np.testing.assert_allclose(solve(1e-4 * rows, h, grid=int_grid(3)).scales, 1e-4 * one.scales, rtol=1e-12)
    np.testing.assert_allclose(solve(rows, np.diag([2.0] * 8), grid=int_grid(3)).scales,
                               solve(rows, np.full(8, 2.0), grid=int_grid(3)).scales, rtol=1e-12)  # fmt: skip


def test_a_planted_scale_is_found() -> None:
    codes = np.random.default_rng(3).integers(-8, 8, (4, 50)).astype(float)
    found = solve(0.037 * codes, np.eye(50), grid=int_grid(4))
    np.testing.assert_allclose(found.scales[:, 0], 0.037, rtol=1e-9)
    assert (found.codes == codes).all()


def test_float32_comes_close_to_float64() -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((300, 64))
    h, w = x.T @ x / 300, rng.standard_normal((20, 64))
    exact = solve(w, h, grid=int_grid(4))
    single = solve(w.astype(np.float32), h.astype(np.float32), grid=int_grid(4))
    assert single.scales.dtype == np.float32 and single.errors is not None and exact.errors is not None
    assert (single.errors <= exact.errors * 1.001).all()
    tensors = solve(torch.tensor(w), torch.tensor(h), grid=int_grid(4))
    assert (tensors.scales == exact.scales).all()


def test_refit_is_never_worse() -> None:
    w, _, _, h = example()
    for bits in (2, 3, 4):
        plain, refit = (solve(w[None], h, grid=int_grid(bits), refit=flag) for flag in (False, True))
        assert plain.errors is not None and refit.errors is not None
        assert refit.errors[0] <= plain.errors[0]
        assert refit.errors[0] == pytest.approx(error_of(w, h, refit.scales[0, 0], refit.codes[0]))


def test_rows_without_a_best_scale() -> None:
    """Zeros get scale 1; a row whose every code would add error keeps the largest weight's scale."""
    h = np.array([[1.0, -1.0], [-1.0, 1.0]])
    found = solve(np.array([[0.0, 0.0], [3.0, 3.0]]), h, grid=int_grid(4))
    assert found.scales.tolist() == [[1.0], [3.0 / 8]]
    assert found.codes.tolist() == [[0, 0], [7, 7]]
    assert (found.errors == 0).all()
    assert solve(np.zeros((0, 4)), np.eye(4), grid=int_grid(2)).scales.shape == (0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W": np.zeros(4)}, r"W: got shape \[4\], expected \[rows, columns\]"),
        ({"H": np.eye(3)}, r"H: got shape \[3, 3\], expected \[4, 4\] or \[4\]"),
        ({"G": np.ones(4)}, r"G: got shape \[4\], expected H's, \[4, 4\]"),
        ({"W": np.full((2, 4), np.nan)}, "W: got numbers that are not finite"),
        ({"H": np.full((4, 4), np.inf)}, "H: got numbers that are not finite"),
        ({"H": -np.eye(4)}, "H: got a negative diagonal"),
        ({"grid": np.array([1.0, 0.0])}, "grid: got other than two or more ascending values with 0"),
        ({"grid": np.array([1.0, 2.0])}, "grid: got other than two or more ascending values with 0"),
        ({"group_size": 3}, "group_size: got 3, expected a divisor of the 4 columns"),
        ({"group_size": 0}, "group_size: got 0, expected a divisor"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"W": np.ones((2, 4)), "H": np.eye(4), "grid": int_grid(4), **change}
    with pytest.raises(ExportError, match=f"piso: {message}"):
        solve(call.pop("W"), call.pop("H"), call.pop("G", None), **call)
    with pytest.raises(ExportError, match="piso: got 1 bits, expected 2 to 8"):
        int_grid(1)
