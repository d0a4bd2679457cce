"""One step's work: the packed tokens and the requests that they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.backends.session import PackedStep
from enginewright.runtime.requests.request import Generation, Scoring

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Step:
    """One step's work. Logits come in the order: `decided_rows` of the requests in `sampled`, then the rows of `scored`.

    share[rows] int64: new tokens of each row. ready[rows] int64: 1 where the next token is decided.
    slots: of the requests in `sampled`. scored: with first position and count. reading: those whose prompts go on.
    fed: of the requests in `sampled`, where a step may decide several tokens: what each brings behind the token that the model
    had chosen, with a row of logits more than tokens; otherwise empty, and each request has one row.
    """

    packed: PackedStep
    share: Ints
    ready: Ints
    slots: Ints
    sampled: list[Generation]
    scored: list[tuple[Scoring, int, int]]
    reading: list[Generation]
    fed: list[list[int]]

    @property
    def decided_rows(self) -> int:
        """Rows of logits that decide tokens, or judge them."""
        return len(self.sampled) + sum(map(len, self.fed))
