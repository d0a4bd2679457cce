"""Second moments: sums over tokens of products of a layer's inputs, in float32."""

from __future__ import annotations

import torch

from enginewright.exporters.calibration.fast_linear import multiply

# Rows at a time. Of a symmetric sum, what lies above the blocks on the diagonal is copied instead of computed.
_BLOCK = 768


class Moments:
    """The sum over tokens of a b', for vectors a and b of `width` numbers; a and b are the same unless `cross`.

    `BlockWalk` creates it.
    """

    def __init__(self, width: int, *, cross: bool, device: torch.device) -> None:
        self._sum = torch.zeros(width, width, device=device)
        self._cross = cross

    def add(self, a: torch.Tensor, b: torch.Tensor | None = None) -> None:
        """Add the n tokens of a[n, width], together with b[n, width] for a cross moment."""
        left = a.float().T.contiguous()
        right = left if b is None else b.float().T.contiguous()
        for begin in range(0, len(left), _BLOCK):
            end = min(begin + _BLOCK, len(left))
            width = len(left) if self._cross else end
            self._sum[begin:end, :width] += multiply(left[begin:end], right[:width])

    def finish(self) -> torch.Tensor:
        """Return the sum [width, width] float32; nothing can be added after this."""
        if not self._cross:
            for begin in range(_BLOCK, len(self._sum), _BLOCK):
                rows = self._sum[begin : begin + _BLOCK]
                self._sum[:begin, begin : begin + _BLOCK] = rows[:, :begin].T
        return self._sum
