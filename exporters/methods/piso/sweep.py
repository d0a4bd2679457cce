"""Sweeps over all scales of a batch of rows: with our library on a CPU, row by row, or with torch on any device.

Both sweeps take rows whose largest weight is 1. They return, for each row, the lowest error without its constant term, the
scale and the codes. The error is infinite where no scale is better than codes of 0.

Source: PiSO, arXiv 2606.10890, Algorithm 1, with cells as (t_next, t) below each transition t, and the scale kept inside
its cell by a few units in the last place.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import torch

from enginewright.plugins.libraries.scale_sweep import sweep_scales

Swept = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
_MARGIN = 8  # units in the last place between a scale and its cell's ends; as in csrc/cpu/quantise/scale_sweep.cpp
_EVENT_BYTES = 1 << 28  # of a batch's transitions
_CHUNK = 32  # transitions of every row at a time


def sweep_on_cpu(
    weights: torch.Tensor, target: torch.Tensor, block: torch.Tensor, grid: torch.Tensor, *, refit: bool
) -> Swept:
    """Sweep rows on as many threads as torch uses.

    Raises:
        LibraryError: our library was not built.
    """
    rows, columns = weights.shape
    weights, target, block = weights.contiguous(), target.contiguous(), block.contiguous()
    codes = torch.empty_like(weights)
    scales, errors = torch.empty(rows, dtype=torch.float64), torch.empty(rows, dtype=torch.float64)

    def run(begin: int, end: int) -> None:
        part = [tensor[begin:end] for tensor in (weights, target)]
        results = [tensor[begin:end] for tensor in (codes, scales, errors)]
        sweep_scales(
            [tensor.data_ptr() for tensor in (*part, block, grid, *results)],
            (end - begin, columns, len(grid)),
            is_double=weights.dtype is torch.float64,
            is_diagonal=block.ndim == 1,
            refit=refit,
        )

    threads = min(torch.get_num_threads(), os.cpu_count() or 1, rows)
    bounds = [rows * i // (4 * threads) for i in range(4 * threads + 1)] if threads > 1 else [0, rows]
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for done in [pool.submit(run, *span) for span in itertools.pairwise(bounds)]:
            done.result()
    return errors, scales, codes


def sweep_in_chunks(
    weights: torch.Tensor, target: torch.Tensor, block: torch.Tensor, grid: torch.Tensor, *, refit: bool
) -> Swept:
    """Sweep all rows together, some transitions of each at a time, on the device of the tensors."""
    columns = weights.shape[1]
    steps = max(int((grid > 0).sum()), int((grid < 0).sum()))
    batch = max(1, _EVENT_BYTES // (columns * steps * 24))
    spans = [slice(begin, begin + batch) for begin in range(0, max(len(weights), 1), batch)]
    parts = [_Sweep(weights[span], target[span], block, grid).run(refit=refit) for span in spans]
    error, scale, codes = (torch.cat(found) for found in zip(*parts, strict=True))
    return error, scale, codes


class _Sweep:
    """The sweep of one batch of rows; `sweep_in_chunks` creates it.

    Transition j of a row is at scale t[j], in descending order, and moves the code of column[j] by delta[j].
    """

    def __init__(self, weights: torch.Tensor, target: torch.Tensor, block: torch.Tensor, grid: torch.Tensor) -> None:
        self._weights = weights
        self._target = target
        self._block = block
        self._list_transitions(grid)

    def run(self, *, refit: bool) -> Swept:
        """Visit every cell, and return the best of each row."""
        rows, count = self._delta.shape
        codes = torch.zeros_like(self._weights)
        reached = torch.zeros_like(codes)  # H q
        alpha = torch.zeros(rows, dtype=torch.float64, device=codes.device)
        beta = torch.zeros_like(alpha)
        best_error = torch.full_like(alpha, torch.inf)
        best_scale, best_at = torch.zeros_like(alpha), torch.full_like(alpha, -1, dtype=torch.int64)
        for begin in range(0, count, _CHUNK):
            here = slice(begin, min(begin + _CHUNK, count))
            column, delta = self._column[:, here], self._delta[:, here]
            alphas = alpha[:, None] + (delta * self._target.gather(1, column)).cumsum(1)
            betas = beta[:, None] + self._growth(column, delta, codes, reached).cumsum(1)
            scale, error = self._lowest(alphas, betas, here, refit=refit)
            least, at = error.min(1)
            is_better = least < best_error
            best_error = torch.where(is_better, least, best_error)
            best_scale = torch.where(is_better, scale.gather(1, at[:, None])[:, 0], best_scale)
            best_at = torch.where(is_better, begin + at, best_at)
            alpha, beta = alphas[:, -1], betas[:, -1]
        taken = torch.arange(count, device=codes.device) <= best_at[:, None]
        moved = (self._delta * taken).to(codes)
        return best_error, best_scale, torch.zeros_like(codes).scatter_add_(1, self._column, moved)

    def _list_transitions(self, grid: torch.Tensor) -> None:
        middle, step = (grid[1:] + grid[:-1]) / 2, grid.diff()
        above, below = middle > 0, middle < 0
        count = max(int(above.sum()), int(below.sum()))
        ends = torch.zeros(2, 2, count, dtype=torch.float64, device=middle.device)  # [side, middle or step, k]
        for side, chosen in enumerate((above, below)):
            order = torch.argsort(middle[chosen].abs())
            ends[side, 0, : len(order)] = middle[chosen][order]
            ends[side, 1, : len(order)] = step[chosen][order] * (1 - 2 * side)
        sign = (self._weights < 0).long()
        at = ends[sign, 0].to(self._weights)  # [rows, columns, k]
        t, order = torch.where(at != 0, self._weights[..., None] / at, 0).flatten(1).sort(dim=1, descending=True)
        used = int((t > 0).sum(1).max()) if len(t) else 0
        self._column = order[:, :used] // count
        self._delta = ends[sign, 1].flatten(1).gather(1, order[:, :used]) * (t[:, :used] > 0)
        self._t = torch.cat([t[:, :used], t.new_zeros(len(t), 1)], 1)

    def _growth(
        self, column: torch.Tensor, delta: torch.Tensor, codes: torch.Tensor, reached: torch.Tensor
    ) -> torch.Tensor:
        """The growth of q' H q with each transition of the chunk, float64; codes and H q move on to the chunk's end."""
        if self._block.ndim == 1:
            same = (column[:, :, None] == column[:, None, :]).tril(-1)  # only a column's own transitions count
            before = codes.gather(1, column).double() + (same * delta[:, None, :]).sum(2)
            codes.scatter_add_(1, column, delta.to(codes))
            return self._block[column].double() * (2 * before * delta + delta * delta)
        moved = delta.to(codes)
        pairs = self._block[column[:, :, None], column[:, None, :]]
        before = reached.gather(1, column) + (pairs.tril(-1) @ moved[..., None])[..., 0]
        reached += torch.nn.functional.embedding_bag(column, self._block, per_sample_weights=moved, mode="sum")
        diagonal = pairs.diagonal(dim1=1, dim2=2).double()
        return 2 * delta * before.double() + delta * delta * diagonal

    def _lowest(
        self, alphas: torch.Tensor, betas: torch.Tensor, here: slice, *, refit: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and error of each cell's lowest point; the error is infinite for cells too narrow to hold a scale."""
        high = self._t[:, here].double()
        low = self._t[:, here.start + 1 : here.stop + 1].double()
        margin = _MARGIN * torch.finfo(self._weights.dtype).eps * high
        centre = alphas / betas.clamp_min(torch.finfo(torch.float64).tiny)
        scale = centre if refit else torch.minimum(torch.maximum(centre, low + margin), high - margin)
        error = scale * scale * betas - 2 * scale * alphas
        is_open = (high - low > 2 * margin) & (alphas > 0) & (betas > 0)
        return scale, error.masked_fill(~is_open, torch.inf)
