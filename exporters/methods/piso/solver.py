"""Exact quantisation scales: finds the best scale of a row of weights under a quadratic error, and the codes that go with it.

A transition is a scale at which one weight changes its code. Between two neighbouring transitions, in a cell, the codes are
constant and the error is a parabola in the scale. A sweep (`sweep.py`) visits all cells and takes the best point of the best.

Source: PiSO, arXiv 2606.10890, Algorithm 1 (sections 3.1, 3.2 and appendix A), with cells as (t_next, t) below each
transition t, and the scale kept inside its cell by a few units in the last place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from enginewright.exporters.methods.piso.sweep import sweep_in_chunks, sweep_on_cpu
from enginewright.runtime.errors import ExportError

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Solution:
    """Scales and codes whose product is close to the weights; `solve` creates it.

    scales: [C, groups].
    codes: [C, D], values of the grid.
    errors: [C], (w - s q)' H (w - s q) over all groups. None where a cross term G was given, because the error then depends
        on the float model's own inputs.
    """

    scales: Array
    codes: Array
    errors: Array | None


def int_grid(bits: int, narrow: bool = False) -> Array:
    """Return the integers of `bits` bits in two's complement, ascending, as float64.

    narrow: whether the lowest one is left out.

    Raises:
        ExportError: fewer than 2 bits, or more than 8.
    """
    if not 2 <= bits <= 8:
        raise ExportError(f"piso: got {bits} bits, expected 2 to 8")
    half = 1 << (bits - 1)
    return np.arange(-half + narrow, half, dtype=np.float64)


def solve(
    W: Array | torch.Tensor,
    H: Array | torch.Tensor,
    G: Array | torch.Tensor | None = None,
    *,
    grid: Array,
    group_size: int | None = None,
    sequential: bool = False,
    signed: bool = False,
    refit: bool = False,
) -> Solution:
    """Return each row's scales s and codes q that minimise (w - s q)' H (w - s q) with q = w / s rounded to `grid`.

    W: weights [C, D].
    H: [D, D] symmetric, or its diagonal [D]: a positive multiple of the sum of x~ x~' over the layer's inputs.
    G: [D, D], the sum of x~ x', where the float model's inputs x differ from x~; (X w - s X~ q)^2 is then minimised.
    grid: ascending values with 0 among them.
    group_size: weights of a row that share a scale; None: all D.
    sequential: a group's scale accounts for the errors of the groups before it. Groups come in descending order of their
        part of H's diagonal.
    signed: scales may be negative, which an asymmetric grid may gain from.
    refit: the scale is the best one for its codes, which then need not be the nearest.

    Rows of zeros, and rows whose best code is 0 everywhere, get the scale max |w| / max |grid|, or 1. Computes in float64 if
    W is float64, else in float32 with sums in float64, on the device of the tensors.

    Raises:
        ExportError: shapes, the grid or the group size do not fit, or numbers are not finite.
    """
    weights = torch.as_tensor(W)
    work = weights.dtype if weights.dtype in (torch.float32, torch.float64) else torch.float32
    weights = weights.to(work)
    h = torch.as_tensor(H).to(weights)
    g = None if G is None else torch.as_tensor(G).to(weights)
    _check(weights, h, g, grid, group_size)
    values = torch.as_tensor(np.asarray(grid, np.float64), device=weights.device)
    size = group_size or weights.shape[1]
    scales = weights.new_empty(len(weights), weights.shape[1] // size)
    codes, restored = torch.empty_like(weights), torch.zeros_like(weights)
    for index, target in group_targets(weights, h, g, size, restored, sequential=sequential):
        part = slice(index * size, (index + 1) * size)
        block = h[part] if h.ndim == 1 else h[part, part]
        best = best_cells(weights[:, part], target, block, values, signed=signed, refit=refit)
        scales[:, index], codes[:, part] = best.scales, best.codes
        restored[:, part] = best.scales[:, None] * best.codes
    errors = None if g is not None else quadratic_errors(weights - restored, h)
    return Solution(scales.cpu().numpy(), codes.cpu().numpy(), None if errors is None else errors.cpu().numpy())


def _check(weights: torch.Tensor, h: torch.Tensor, g: torch.Tensor | None, grid: Array, group_size: int | None) -> None:
    if weights.ndim != 2 or not weights.shape[1]:
        raise ExportError(f"piso: W: got shape {list(weights.shape)}, expected [rows, columns]")
    columns = weights.shape[1]
    if h.shape not in ((columns,), (columns, columns)):
        raise ExportError(f"piso: H: got shape {list(h.shape)}, expected [{columns}, {columns}] or [{columns}]")
    if g is not None and g.shape != h.shape:
        raise ExportError(f"piso: G: got shape {list(g.shape)}, expected H's, {list(h.shape)}")
    for name, tensor in (("W", weights), ("H", h), ("G", g)):
        if tensor is not None and not tensor.isfinite().all():
            raise ExportError(f"piso: {name}: got numbers that are not finite, expected finite ones")
    if (h if h.ndim == 1 else h.diagonal()).min() < 0:
        raise ExportError("piso: H: got a negative diagonal, expected a sum of x x'")
    steps = np.diff(np.asarray(grid, np.float64))
    if np.ndim(grid) != 1 or not len(steps) or not (steps > 0).all() or 0.0 not in np.asarray(grid, np.float64):
        raise ExportError("piso: grid: got other than two or more ascending values with 0 among them")
    if group_size is not None and (group_size < 1 or columns % group_size):
        raise ExportError(f"piso: group_size: got {group_size}, expected a divisor of the {columns} columns")


def group_targets(
    weights: torch.Tensor,
    h: torch.Tensor,
    g: torch.Tensor | None,
    size: int,
    restored: torch.Tensor,
    *,
    sequential: bool,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the index of each group of `size` columns, in order, and its linear term p [C, size].

    sequential: groups come in descending order of their part of H's diagonal, and p_g is the sum of G_gj w_j over the groups
        j up to g, minus the sum of H_gj v_j over those before g. The caller sets v_j, columns of `restored`, before it asks
        for the next group.
    """
    cross = h if g is None else g
    groups = [slice(begin, begin + size) for begin in range(0, weights.shape[1], size)]
    if h.ndim == 1 or not sequential or len(groups) == 1:
        for index, part in enumerate(groups):
            yield index, weights[:, part] * cross[part] if h.ndim == 1 else weights[:, part] @ cross[part, part].T
        return
    pending = torch.zeros_like(weights)
    for index in torch.argsort(h.diagonal().view(-1, size).sum(1), descending=True, stable=True).tolist():
        part = groups[index]
        yield index, pending[:, part] + weights[:, part] @ cross[part, part].T
        if g is None:
            pending.addmm_(weights[:, part] - restored[:, part], h[part])
        else:
            pending.addmm_(weights[:, part], g[:, part].T).addmm_(restored[:, part], h[part], alpha=-1)


@dataclass
class Best:
    """The best cell of each of C rows; `best_cells` creates it.

    scales: [C].
    codes: [C, g].
    errors: [C], without the constant term; infinite where the row has no open cell.
    """

    scales: torch.Tensor
    codes: torch.Tensor
    errors: torch.Tensor

    def negated(self) -> Best:
        """The same cells with scales of the other sign."""
        return Best(-self.scales, self.codes, self.errors)

    def better(self, other: Best) -> Best:
        """Row by row the cell of smaller error; where errors are equal, the one of `self`."""
        swap = other.errors < self.errors
        return Best(
            torch.where(swap, other.scales, self.scales),
            torch.where(swap[:, None], other.codes, self.codes),
            torch.where(swap, other.errors, self.errors),
        )


def best_cells(
    weights: torch.Tensor,
    target: torch.Tensor,
    block: torch.Tensor,
    grid: torch.Tensor,
    *,
    signed: bool = False,
    refit: bool = False,
) -> Best:
    """The best cell of each row: the least s^2 q' H q - 2 s q' p with q = w / s rounded to the grid.

    weights: [C, g].
    target: p [C, g].
    block: H [g, g] or its diagonal [g].
    grid: float64.
    signed: as in `solve`.
    refit: as in `solve`.

    A row without an open cell gets the scale that gives its largest weight the largest code.
    """
    best = _positive_best(weights, target, block, grid, refit=refit)
    if signed:
        best = best.better(_positive_best(-weights, -target, block, grid, refit=refit).negated())
    return best


def _positive_best(
    weights: torch.Tensor, target: torch.Tensor, block: torch.Tensor, grid: torch.Tensor, *, refit: bool
) -> Best:
    largest = weights.abs().amax(1)
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))  # so that margins are relative
    scaled = weights / unit[:, None]
    sweep = sweep_on_cpu if weights.device.type == "cpu" else sweep_in_chunks
    error, scale, codes = sweep(scaled, (target / unit[:, None]).double(), block, grid, refit=refit)
    is_found = error < torch.inf
    scale = torch.where(is_found, scale, 1 / grid.abs().max()).to(weights)
    if not is_found.all():
        codes = torch.where(is_found[:, None], codes, nearest(scaled / scale[:, None], grid))
    scale = torch.where(largest > 0, scale * unit, torch.ones_like(scale))
    return Best(scale, codes, error * unit.double().square())


def nearest(ratio: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """The nearest values of the grid; of two that are equally near, the higher one."""
    middle = ((grid[1:] + grid[:-1]) / 2).to(ratio)
    return grid.to(ratio)[torch.bucketize(ratio, middle, right=True)]


def quadratic_errors(rest: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """The quadratic form r' H r of each row r, summed in float64."""
    product = rest * h if h.ndim == 1 else rest @ h
    return (rest.double() * product.double()).sum(1)
