"""What runs the decoder graph: the interface, and the packed step it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PackedStep:
    """One step's new tokens, all rows one after another.

    input_ids, position_ids: int64 [T]. query_starts: int32 [rows + 1]; a row without new tokens has equal bounds.
    sample_rows: int64 [N], at least one: the tokens whose logits are wanted.
    sink_copies: (from, to) rows whose exact first tile is copied before anything else, in this order.
    """

    input_ids: Ints
    position_ids: Ints
    query_starts: NDArray[np.int32]
    sample_rows: Ints
    sink_copies: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a step gives for its sampled tokens: logits float32 [N, V], and the most probable token int64 [N] of each.

    A token is the lowest id among equals, and -1 where the logits are not finite.
    """

    logits: Floats
    greedy: Ints

    def __getitem__(self, rows: slice) -> Outputs:
        """Return those rows."""
        return Outputs(self.logits[rows], self.greedy[rows])


class Session(Protocol):
    """A decoder graph bound to its cache tables and tile pools.

    run_seconds: time spent inside the backend so far.
    """

    run_seconds: float

    def run(self, step: PackedStep) -> Outputs:
        """Return the outputs, writable and valid until the next run; the new tokens' keys and values are cached."""
        ...
