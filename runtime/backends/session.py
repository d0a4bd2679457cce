"""The interface of a session, which runs the decoder graph, with the step that it takes and the outputs that it gives."""

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

    input_ids, position_ids: int64 [T].
    query_starts: int32 [rows + 1]; a row without new tokens has equal bounds.
    sample_rows: int64 [N], at least one: the tokens whose logits are wanted.
    sink_copies: (from, to) rows whose exact first tile is copied before anything else, in this order.
    reads_logits: whether the logits are read, and not only the greedy tokens; if not, they need not leave the device.
    """

    input_ids: Ints
    position_ids: Ints
    query_starts: NDArray[np.int32]
    sample_rows: Ints
    sink_copies: tuple[tuple[int, int], ...] = ()
    reads_logits: bool = True


@dataclass(frozen=True, slots=True)
class Outputs:
    """A step's results for its sampled tokens.

    logits: float32 [N, V].
    greedy: int64 [N], the most probable token of each: the lowest id among equals, -1 where the logits are not finite.
    drafts: int64 [N, k], the greedy token and the heads' guesses at the tokens after it; None unless the graph has heads.
    draft_counts: int64 [N], how many of them count, at least 1; None unless the graph has heads.
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
