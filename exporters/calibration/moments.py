"""Sums of products of inputs, float32."""

from __future__ import annotations

import torch

from enginewright.exporters.calibration.fast_linear import multiply

_BLOCK = 768  # of rows; of a symmetric sum, what lies above the blocks on the diagonal is not computed but copied


class Moments:
    """The sum over tokens of a b', of which there are `width` numbers each; a and b are the same unless `cross`."""

    def __init__(self, width: int, *, cross: bool, device: torch.device) -> None:
        self._sum = torch.zeros(width, width, device=device)
        self._cross = cross

    def add(self, a: torch.Tensor, b: torch.Tensor | None = None) -> None:
        """Add the tokens of a[n, width], and for a cross moment those of b[n, width]."""
        left = a.float().T.contiguous()
        right = left if b is None else b.float().T.contiguous()
        for begin in range(0, len(left), _BLOCK):
            end = min(begin + _BLOCK, len(left))
            width = len(left) if self._cross else end
            self._sum[begin:end, :width] += multiply(left[begin:end], right[:width])

    def finish(self) -> torch.Tensor:
        """The sum [width, width] float32; nothing can be added after."""
        if not self._cross:
            for begin in range(_BLOCK, len(self._sum), _BLOCK):
                rows = self._sum[begin : begin + _BLOCK]
                self._sum[:begin, begin : begin + _BLOCK] = rows[:, :begin].T
        return self._sum
