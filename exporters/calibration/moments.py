"""Sums of products of inputs, float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_BLOCK = 512  # of rows: what lies above the blocks on the diagonal is not computed, but copied at the end


class Moments:
    """The sum over tokens of a b', of which there are `width` numbers each; a and b are the same unless `cross`."""

    def __init__(self, width: int, *, cross: bool, device: torch.device) -> None:
        self._sum = torch.zeros(width, width, device=device)
        self._cross = cross

    def add(self, a: torch.Tensor, b: torch.Tensor | None = None) -> None:
        """Add the tokens of a[n, width], and for a cross moment those of b[n, width], both of one type."""
        with _exact_products(a.dtype):
            left, right = a.float(), (a if b is None else b).float()
            if self._cross:
                self._sum.addmm_(left.T, right)
                return
            width = len(self._sum)
            for begin in range(0, width, _BLOCK):
                end = min(begin + _BLOCK, width)
                self._sum[begin:end, :end].addmm_(left[:, begin:end].T, left[:, :end])

    def finish(self) -> torch.Tensor:
        """The sum [width, width] float32; nothing can be added after."""
        if not self._cross:
            for begin in range(0, len(self._sum), _BLOCK):
                rows = self._sum[begin : begin + _BLOCK]
                self._sum[:begin, begin : begin + _BLOCK] = rows[:, :begin].T
        return self._sum


@contextmanager
def _exact_products(dtype: torch.dtype) -> Iterator[None]:
    """Let products of numbers that came as bfloat16 run on the units for it: exact, and still summed in float32."""
    before = torch.get_float32_matmul_precision()
    if dtype == torch.bfloat16:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
