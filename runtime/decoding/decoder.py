"""The interface of decoders, which turn a step's logits into tokens, and the types that they return."""

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
    """The decisions of a step for one request, where steps may decide several tokens; created by the decoder.

    tokens: the tokens that the request gets.
    accepted: how many of `tokens` were drafts that this step checked.
    drafts: guesses at the tokens after those, for the next step to check.
    """

    tokens: list[int]
    accepted: int = 0
    drafts: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Emission:
    """The decisions of a step for all sampled requests; created by the decoder.

    tokens[r]: the next token of the r-th sampled request; the first one where it gets several.
    logprobs[r]: the token's log-probabilities, where that request asks for them.
    continuations[r]: all tokens of that request; None where a step decides one token for each request.
    """

    tokens: NDArray[np.int64]
    logprobs: list[Logprobs | None]
    continuations: list[Continuation] | None = None

    @property
    def decided(self) -> int:
        """Number of tokens decided, over all requests."""
        return len(self.tokens) if self.continuations is None else sum(len(each.tokens) for each in self.continuations)


class Decoder(Protocol):
    """Decides tokens; one for each engine, created by `open_decoder` for the kind that the manifest names.

    width: the most tokens that a decoding row brings into a step.
    """

    width: int

    def decode(self, outputs: Outputs, requests: Sequence[Generation], drafts: Sequence[list[int]]) -> Emission:
        """Return the next tokens of `requests`; may overwrite `outputs`.

        drafts: where width is above 1, the draft tokens that each request put into the step, after its last known token. A
            request with n drafts has n + 1 rows of `outputs`, in order. Where width is 1, each request has one row, and
            `drafts` is empty.
        """
        ...
