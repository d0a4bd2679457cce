"""Defines HoldQueries in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def hold_queries(
    query: Floats,
    ring: Floats,
    query_starts: NDArray[np.int32],
    slots: NDArray[np.int32],
    position_ids: NDArray[np.int64],
) -> Floats:
    """The ring with the last R new queries of each row; `plugins/ops/hold_queries.py` declares the arguments."""
    ring_out, entries = ring.copy(), ring.shape[2]
    for row, slot in enumerate(slots):
        start, end = query_starts[row : row + 2].tolist()
        for token in range(max(start, end - entries), end):
            ring_out[slot, :, position_ids[token] % entries] = query[token]
    return ring_out
