"""Error correction: rounds the columns of a layer one after another, and lets later columns make up for the errors so far.

Let u minimise the layer's damped error without rounding. Then the error of restored weights v is, except for a constant,
(u - v)' (H + d I) (u - v). Let H + d I = R R' with R upper triangular. The error's term of column t then depends only on
columns up to t. So once the columns before t are rounded with errors e = u - v, column t should have the weights
u_t + (sum over j < t of e_j R_jt) / R_tt. GPTQ's factor, the Cholesky factor of (H + d I)^-1, is R^-1; only the blocks on
its diagonal are needed here.

Source: GPTQ, arXiv 2210.17323, section 3.3; its equal form LDLQ: arXiv 2307.13304, section 4; Qronos, arXiv 2505.11695,
section 3; PiSO, arXiv 2606.10890, section 3.3 and appendix B.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from enginewright.exporters.methods.piso.scales import ScaleFitter
from enginewright.exporters.methods.piso.settings import LayerSettings

_BLOCK = 128  # columns whose effect on later ones is added at once
_ATTEMPTS = 6  # each with ten times the damping of the one before
_GPTQ_DAMPING = 0.01  # of the mean of H's diagonal
_QRONOS_DAMPING = 1e-6  # of H's largest eigenvalue
_POWER_ITERATIONS = 30


def correct(
    weights: torch.Tensor,
    hessian: torch.Tensor,
    cross: torch.Tensor | None,
    settings: LayerSettings,
    *,
    scales: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return scales [C, groups] and codes [C, D] of corrected weights; None, with a warning, where H cannot be factored.

    weights: [C, D].
    hessian: H [D, D].
    cross: G [D, D] of Qronos, or None.
    scales: [C, groups], kept as they are; None: fitted as the settings say.

    Columns whose inputs are always 0 are rounded to the nearest code.
    """
    by_group = scales is None and settings.interleave == "group"
    size = settings.group_size or weights.shape[1]
    order = column_order(hessian.diagonal(), size if by_group else None)
    damping = _damping(hessian, settings)
    is_exact = settings.correction == "qronos" or weights.dtype is torch.float64
    factored = _factor(hessian, order, damping, is_exact=is_exact)
    if factored is None:
        return None
    factor, damping = factored
    task = _task(weights, hessian, cross, order, factor, damping)
    fitter = ScaleFitter(settings, weights)
    rounding = _Rounding(task, float(fitter.grid[0]), float(fitter.grid[-1]))
    if by_group:
        scales = _round_by_groups(task, rounding, fitter, settings, size)
    else:
        if scales is None:
            scales, _ = fitter.fit_layer(weights, hessian, cross)
        columns = scales.T[order // size]
        for begin in range(0, len(order), _BLOCK):
            end = min(begin + _BLOCK, len(order))
            rounding.round(begin, end, rounding.corrected(begin, end), columns[begin:end])
    codes = torch.empty_like(weights)
    codes[:, order] = rounding.codes.T
    return scales, codes


def column_order(diagonal: torch.Tensor, size: int | None) -> torch.Tensor:
    """Columns [D] by descending H_ii.

    With a group size, groups come by the descending sum of their H_ii, and the columns in a group by their own.
    """
    if size is None:
        return diagonal.argsort(descending=True, stable=True)
    parts = diagonal.view(-1, size)
    groups = parts.sum(1).argsort(descending=True, stable=True)
    inside = parts.argsort(dim=1, descending=True, stable=True)
    return (groups[:, None] * size + inside[groups]).flatten()


def _damping(hessian: torch.Tensor, settings: LayerSettings) -> float:
    diagonal = hessian.diagonal()
    if settings.correction == "gptq":
        return _GPTQ_DAMPING * float(diagonal.double().mean())
    vector = hessian[:, int(diagonal.argmax())]
    for _ in range(_POWER_ITERATIONS):
        vector = hessian @ (vector / vector.norm())
    return _QRONOS_DAMPING * float(vector.norm())


def _factor(
    hessian: torch.Tensor, order: torch.Tensor, damping: float, *, is_exact: bool
) -> tuple[torch.Tensor, float] | None:
    """R, upper triangular, with R R' = H + d I in the given order of columns, and d; in float64 if exact or if float32 fails.

    None, with a warning, when no damping helps.
    """
    turned = order.flip(0)
    mirrored = hessian[turned][:, turned]
    first = damping
    for _ in range(_ATTEMPTS):
        for work in (torch.float64,) if is_exact else (torch.float32, torch.float64):
            damped = mirrored.to(work, copy=True)
            damped.diagonal().add_(damping)
            lower, info = torch.linalg.cholesky_ex(damped)
            if not info and lower.isfinite().all():
                if damping > first:
                    warnings.warn(
                        f"piso: hessian: not positive definite when damped by {first:.3g}; damped by {damping:.3g}",
                        stacklevel=4,
                    )
                return lower.flip(0, 1), damping
        damping *= 10
    warnings.warn(
        f"piso: hessian: not positive definite when damped by {damping / 10:.3g}; the layer is rounded without correction",
        stacklevel=4,
    )
    return None


@dataclass(frozen=True)
class _Task:
    """The values that the columns of one layer are rounded towards; `_task` creates it.

    Columns are in the order in which they are rounded, and the C values of a column lie together.

    hessian: H [D, D], in the layer's own order of columns.
    cross: G [D, D], in the layer's own order; None where G = H.
    order: [D], the columns in the order of rounding.
    factor: R [D, D].
    damping: d.
    weights: [D, C], of the float model.
    goal: u [D, C], the weights that minimise the damped error without rounding.
    first: [C], the first column's weights when all others keep those of the float model; None: goal's.
    shift: (G - H) w [D, C]; None where G = H.
    """

    hessian: torch.Tensor
    cross: torch.Tensor | None
    order: torch.Tensor
    factor: torch.Tensor
    damping: float
    weights: torch.Tensor
    goal: torch.Tensor
    first: torch.Tensor | None = None
    shift: torch.Tensor | None = None

    def block(self, begin: int, end: int, *, of_cross: bool = False) -> torch.Tensor:
        """The part [end - begin, end - begin] of H, or of G, for the columns from `begin` to `end`."""
        columns = self.order[begin:end]
        moments = self.cross if of_cross and self.cross is not None else self.hessian
        return moments[columns[:, None], columns]


def _task(
    weights: torch.Tensor,
    hessian: torch.Tensor,
    cross: torch.Tensor | None,
    order: torch.Tensor,
    factor: torch.Tensor,
    damping: float,
) -> _Task:
    """Order the weights and compute the goal u = w + (H + d I)^-1 (G - H) w; u = w where G = H.

    So damping pulls towards the float model's weights.
    """
    ordered = weights.T[order].contiguous()
    work = factor.to(weights)
    if cross is None:
        return _Task(hessian, None, order, work, damping, ordered, ordered)
    shift = ((cross - hessian) @ weights.T)[order]
    lower = factor.flip(0, 1)
    move = torch.cholesky_solve(shift.flip(0).to(factor), lower).flip(0)
    first = ordered[0] + shift[0] / hessian[order[0], order[0]]
    goal = (ordered.to(factor) + move).to(weights).contiguous()
    return _Task(hessian, cross, order, work, damping, ordered, goal, first, shift)


class _Rounding:
    """Rounds columns, and holds the codes [D, C] of those rounded so far; `correct` creates one for each layer."""

    def __init__(self, task: _Task, low: float, high: float) -> None:
        self._task = task
        self._low, self._high = low, high
        self.codes = torch.zeros_like(task.goal)
        self._rest = torch.zeros_like(task.goal)  # e = u - v
        self._panel: tuple[int, int, torch.Tensor] | None = None

    def corrected(self, begin: int, end: int) -> torch.Tensor:
        """The weights [end - begin, C] that these columns should have, now that those before `begin` are rounded."""
        if begin == 0:
            return self._task.goal[:end].clone()
        return torch.addmm(self._task.goal[begin:end], self._inverse(begin, end).T, self._pull(begin, end))

    def round(self, begin: int, end: int, wanted: torch.Tensor, scales: torch.Tensor) -> None:
        """Round columns whose weights are `wanted` [end - begin, C], which is changed; scales are of the same shape."""
        inverse = self._inverse(begin, end)
        shares = (inverse / inverse.diagonal()[:, None]).neg_()
        codes = self.codes[begin:end]
        rest = torch.empty_like(wanted[0])
        for at in range(end - begin):
            aim, scale, code = wanted[at], scales[at], codes[at]
            if begin == at == 0 and self._task.first is not None:
                aim = self._task.first
            torch.div(aim, scale, out=code)
            code.add_(0.5).floor_().clamp_(self._low, self._high)
            torch.addcmul(wanted[at], code, scale, value=-1, out=rest)
            if at + 1 < end - begin:
                wanted[at + 1 :].addr_(shares[at, at + 1 :], rest)
        torch.addcmul(self._task.goal[begin:end], codes, scales, value=-1, out=self._rest[begin:end])

    def _inverse(self, begin: int, end: int) -> torch.Tensor:
        """The block of R^-1 from `begin` to `end` on the diagonal."""
        block = self._task.factor[begin:end, begin:end]
        unit = torch.eye(end - begin, dtype=block.dtype, device=block.device)
        inverse: torch.Tensor = torch.linalg.solve_triangular(block, unit, upper=True)
        return inverse.contiguous()

    def _pull(self, begin: int, end: int) -> torch.Tensor:
        """The sum over rounded columns j of R_jt e_j, for t from `begin` to `end`.

        The part of columns far back is computed for a panel of several t at once.
        """
        factor, rest = self._task.factor, self._rest
        if self._panel is None or end > self._panel[1]:
            stop = min(max(end, begin + _BLOCK), len(rest))
            self._panel = begin, stop, factor[:begin, begin:stop].T @ rest[:begin]
        start, _, panel = self._panel
        pull = panel[begin - start : end - start]
        return pull if start == begin else torch.addmm(pull, factor[start:begin, begin:end].T, rest[start:begin])


def _round_by_groups(
    task: _Task, rounding: _Rounding, fitter: ScaleFitter, settings: LayerSettings, size: int
) -> torch.Tensor:
    """Fit each group's scales when its first column is reached, then round its columns; return the scales [C, groups]."""
    scales = task.goal.new_empty(len(task.order) // size, task.goal.shape[1])
    for begin in range(0, len(task.order), size):
        end = begin + size
        wanted = rounding.corrected(begin, end)
        current = wanted.T
        if begin == 0 and task.first is not None:
            current = torch.cat([task.first[None], task.weights[1:end]]).T
        block = task.block(begin, end)
        if settings.diagonal or settings.scales != "piso":
            block = block.diagonal()
        target = _target(task, begin, current, block, settings)
        scale, _ = fitter.fit(current.contiguous(), target, block)
        scales[task.order[begin] // size] = scale
        for start in range(begin, end, _BLOCK):
            stop = min(start + _BLOCK, end)
            part = wanted if stop - start == size else rounding.corrected(start, stop)
            rounding.round(start, stop, part, scale.expand(stop - start, -1))
    return scales.T.contiguous()


def _target(
    task: _Task, begin: int, current: torch.Tensor, block: torch.Tensor, settings: LayerSettings
) -> torch.Tensor:
    """The linear term p [C, g] of a group's error, while all other groups stay as corrected so far.

    p_g = (G w)_g - sum over other groups o of H_go v_o. All columns from g on minimise the damped error, so that
    (G w - H v)_g = d (v - w)_g, and p_g = H_gg v_g + d (v - w)_g. The first group of Qronos is fitted before that minimum.
    """
    end = begin + len(block)
    weights = task.weights[begin:end].T
    if begin == 0 and task.shift is not None:
        if settings.sequential and block.ndim == 2:
            return weights @ block + task.shift[:end].T
        cross = task.block(begin, end, of_cross=True)
        return weights * cross.diagonal() if block.ndim == 1 else weights @ cross.T
    if block.ndim == 1:
        return current * block
    target = current @ block
    return target.add_(current - weights, alpha=task.damping) if settings.sequential else target
