"""Error correction: the columns of a layer are rounded one after another, and those not yet rounded make up for the error.

With u the minimiser of the layer's damped error without rounding, the error of restored weights v is, but for a constant,
(u - v)' (H + d I) (u - v). With H + d I = R R', R upper, its term of column t depends on columns up to t alone; so the weights
that column t should have, once those before it are rounded with errors e = u - v, are u_t + sum over j < t of e_j R_jt / R_tt.
GPTQ's factor, the Cholesky factor of (H + d I)^-1, is R^-1: here it is needed of blocks of the diagonal alone.

Source: GPTQ, arXiv 2210.17323, section 3.3; its equal form LDLQ: arXiv 2307.13304, section 4; Qronos, arXiv 2505.11695,
section 3; PiSO, arXiv 2606.10890, section 3.3 and appendix B.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from enginewright.exporters.methods.piso.scales import ScaleFitter
from enginewright.exporters.methods.piso.settings import LayerSettings

_BLOCK = 128  # columns whose corrections of later ones are brought in together
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

    weights[C, D], hessian[D, D], cross[D, D]: G of Qronos, or None. scales: frozen ones; None: fitted as the settings say.
    Columns that never fire are rounded to the nearest.
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
    progress = _Rounding(task, float(fitter.grid[0]), float(fitter.grid[-1]))
    if by_group:
        scales = _round_by_groups(task, progress, fitter, settings, size)
    else:
        if scales is None:
            scales, _ = fitter.fit_layer(weights, hessian, cross)
        columns = scales.T[order // size]
        for begin in range(0, len(order), _BLOCK):
            end = min(begin + _BLOCK, len(order))
            progress.round(begin, end, progress.free(begin, end), columns[begin:end])
    codes = torch.empty_like(weights)
    codes[:, order] = progress.codes.T
    return scales, codes


def column_order(diagonal: torch.Tensor, size: int | None) -> torch.Tensor:
    """Columns [D] by descending H_ii; with a group size: groups by descending sums of theirs, columns inside by their own."""
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
    """R, upper, with R R' = H + d I in the given order, and d; float64 if exact or if float32 fails."""
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
    """Towards what columns are rounded, all in the order in which they are, a column's C values together.

    factor[D, D]: R. goal[D, C]: u, weights that minimise the damped error without rounding. weights[D, C]: those of the float
    model. first[C]: the first column's weights when all others keep those of the float model; None: goal's.
    shift[D, C]: (G - H) w; None where G = H.
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
        """H, or G, [end - begin, end - begin] of some columns."""
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
    """Damping pulls towards the float model's weights: u = w + (H + d I)^-1 (G - H) w, and u = w where G = H."""
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
    """Codes [D, C] of the columns rounded so far; made for one layer."""

    def __init__(self, task: _Task, low: float, high: float) -> None:
        self._task = task
        self._low, self._high = low, high
        self.codes = torch.zeros_like(task.goal)
        self._rest = torch.zeros_like(task.goal)  # e = u - v
        self._panel: tuple[int, int, torch.Tensor] | None = None

    def free(self, begin: int, end: int) -> torch.Tensor:
        """The weights [end - begin, C] that columns should have now that those before `begin` are rounded."""
        if begin == 0:
            return self._task.goal[:end].clone()
        return torch.addmm(self._task.goal[begin:end], self._inverse(begin, end).T, self._pull(begin, end))

    def round(self, begin: int, end: int, wanted: torch.Tensor, scales: torch.Tensor) -> None:
        """Round columns whose weights are `wanted`, which changes; scales: of the columns, as `wanted`."""
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
        """That block of R^-1."""
        block = self._task.factor[begin:end, begin:end]
        unit = torch.eye(end - begin, dtype=block.dtype, device=block.device)
        inverse: torch.Tensor = torch.linalg.solve_triangular(block, unit, upper=True)
        return inverse.contiguous()

    def _pull(self, begin: int, end: int) -> torch.Tensor:
        """The sum over rounded columns j of R_jt e_j, for t of begin..end; those far back come in a panel at a time."""
        factor, rest = self._task.factor, self._rest
        if self._panel is None or end > self._panel[1]:
            stop = min(max(end, begin + _BLOCK), len(rest))
            self._panel = begin, stop, factor[:begin, begin:stop].T @ rest[:begin]
        start, _, panel = self._panel
        pull = panel[begin - start : end - start]
        return pull if start == begin else torch.addmm(pull, factor[start:begin, begin:end].T, rest[start:begin])


def _round_by_groups(
    task: _Task, progress: _Rounding, fitter: ScaleFitter, settings: LayerSettings, size: int
) -> torch.Tensor:
    """Scales [C, groups], each group's fitted when its first column is reached; then its columns are rounded."""
    scales = task.goal.new_empty(len(task.order) // size, task.goal.shape[1])
    for begin in range(0, len(task.order), size):
        end = begin + size
        wanted = progress.free(begin, end)
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
            part = wanted if stop - start == size else progress.free(start, stop)
            progress.round(start, stop, part, scale.expand(stop - start, -1))
    return scales.T.contiguous()


def _target(
    task: _Task, begin: int, current: torch.Tensor, block: torch.Tensor, settings: LayerSettings
) -> torch.Tensor:
    """The linear term p [C, g] of a group's error; all other groups stand as corrected so far.

    p_g = (G w)_g - sum over other groups o of H_go v_o. All columns from g on minimise the damped error, which leaves
    (G w - H v)_g = d (v - w)_g; so p_g = H_gg v_g + d (v - w)_g. The first group of Qronos is fitted before that minimum.
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
