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
    reads_logits: whether anybody reads more than the greedy tokens; otherwise logits need not leave the device.
    """

    input_ids: Ints
    position_ids: Ints
    query_starts: NDArray[np.int32]
    sample_rows: Ints
    sink_copies: tuple[tuple[int, int], ...] = ()
    reads_logits: bool = True


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a step gives for its sampled tokens: logits float32 [N, V], and the most probable token int64 [N] of each.

    A token is the lowest id among equals, and -1 where the logits are not finite. Where the graph emits several tokens a
    step: drafts int64 [N, k], the greedy token and the heads' guesses at those behind it, and draft_counts int64 [N], how
    many of them count, at least 1.
    """

    logits: Floats
    greedy: Ints
    drafts: Ints | None = None
    draft_counts: Ints | None = None

    def __getitem__(self, rows: slice) -> Outputs:
        """Return those rows."""
        if self.drafts is None or self.draft_counts is None:
            return Outputs(self.logits[rows], self.greedy[rows])
        return Outputs(self.logits[rows], self.greedy[rows], self.drafts[rows], self.draft_counts[rows])


class Session(Protocol):
    """A decoder graph bound to its cache tables and tile pools."""

    @property
    def run_seconds(self) -> float:
        """Seconds spent inside the backend so far."""
        ...

    def run(self, step: PackedStep) -> Outputs:
        """Return the outputs, writable and valid until the next run; the new tokens' keys and values are cached."""
        ...
