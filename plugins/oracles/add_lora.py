"""Defines AddLora in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def add_lora(
    base: NDArray[np.float32],
    x: NDArray[np.float32],
    index: NDArray[np.int32],
    scale: NDArray[np.float32],
    *factors: NDArray[np.float16],
    layer: int,
) -> NDArray[np.float32]:
    """Return base + scale * B (A x), token by token.

    base: [1, T, O].
    x: [1, T, N].
    index, scale: [T].
    factors: a [C, L, R, N] and b [C, L, R, Os] of each segment of the outputs.
    """
    result, begin = base.copy(), 0
    for a, b in zip(factors[::2], factors[1::2], strict=True):
        segment = slice(begin, begin + b.shape[3])
        begin = segment.stop
        for token, entry in enumerate(index):
            if 0 < entry < len(a):
                inner = a[entry, layer].astype(np.float32) @ x[0, token]
                result[0, token, segment] += scale[token] * (inner @ b[entry, layer].astype(np.float32))
    return result
