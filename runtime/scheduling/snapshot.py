"""The scheduler's state at one moment, as numbers: for metrics, and for tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SchedulerSnapshot:
    """The scheduler's state at one moment; created by `Scheduler.snapshot`, and a copy that later steps leave as it is.

    waiting: number of requests without a row.
    running: number of requests that have a row.
    rows_in_use: numbers of the rows that have a request, in ascending order.
    known[rows] int64: tokens of each row's request that are decided, prompt and output; 0 for a free row.
    held[rows] int64: tokens that each row has in the cache.
    free_tiles: tiles that no row uses, for each group of layers that advance together.
    cache_use: share of the cache's tiles that rows use, 0 to 1, in the group that has the smallest share left.
    """

    waiting: int
    running: int
    rows_in_use: tuple[int, ...]
    known: Ints
    held: Ints
    free_tiles: tuple[int, ...]
    cache_use: float
