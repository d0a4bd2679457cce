"""One step of the scheduler: the packed tokens, and the requests that they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.backends.session import PackedStep
from enginewright.runtime.requests.request import Generation, Scoring

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Step:
    """One step; created by the Scheduler.

    The step's logits come in this order: first the `decided_rows` rows of the requests in `sampled`, then those of `scored`.

    packed: the tokens, as a session takes them.
    new_tokens[rows] int64: tokens of each row in this step.
    ready[rows] int64: 1 for a row whose next token is decided in this step, else 0.
    rows: row numbers of the requests in `sampled`.
    sampled: the requests that get their next token.
    scored: the scoring requests, each with the first position and the number of its logits.
    prefilling: the requests whose prompts are still being read, and may be shared as prefixes.
    drafts: for each sampled request, the draft tokens that this step verifies; a request with n drafts gets n + 1 rows of
        logits. Empty unless the engine decides several tokens a step.
    """

    packed: PackedStep
    new_tokens: Ints
    ready: Ints
    rows: Ints
    sampled: list[Generation]
    scored: list[tuple[Scoring, int, int]]
    prefilling: list[Generation]
    drafts: list[list[int]]

    @property
    def decided_rows(self) -> int:
        """Number of rows of logits that decide tokens, or check drafts."""
        return len(self.sampled) + sum(map(len, self.drafts))
