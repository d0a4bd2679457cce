"""What turns a step's logits into tokens: one class per decoding kind of the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.requests.completion import Logprobs
from enginewright.runtime.requests.request import Generation


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a step decides for one request: tokens that are its own from now on, then drafts for the next step to check.

    accepted: how many of `tokens` were this step's drafts.
    """

    tokens: list[int]
    accepted: int = 0
    drafts: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Emission:
    """One step's decisions: tokens[r] is the next token of the r-th sampled request, logprobs[r] what it asked for.

    more: where steps decide several tokens, all of each request; `tokens` then holds the first of each.
    """

    tokens: NDArray[np.int64]
    logprobs: list[Logprobs | None]
    continuations: list[Continuation] | None = None

    @property
    def decided(self) -> int:
        """How many tokens, over all requests."""
        return len(self.tokens) if self.continuations is None else sum(len(each.tokens) for each in self.continuations)


class Decoder(Protocol):
    """Decides tokens; created once per engine from `manifest.decoding`.

    width: tokens that a decoding row brings into a step at most.
    """

    width: int

    def decode(self, outputs: Outputs, requests: Sequence[Generation], drafts: Sequence[list[int]]) -> Emission:
        """Return the next tokens of `requests`; may overwrite `outputs`.

        drafts: when width is above 1, the tokens that each request brought into the step behind one that the model had chosen; its
        rows are then one more than those, in order. Otherwise each request has one row, and `drafts` is empty.
        """
        ...
