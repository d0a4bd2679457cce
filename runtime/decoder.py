"""What turns a step's logits into tokens: one class per decoding kind of the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.errors import ArtifactError
from enginewright.runtime.request import Generation
from enginewright.runtime.sampler import Logprobs, choose
from enginewright.runtime.session import Outputs


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
    more: list[Continuation] | None = None

    @property
    def decided(self) -> int:
        """How many tokens, over all requests."""
        return len(self.tokens) if self.more is None else sum(len(each.tokens) for each in self.more)


class Decoder(Protocol):
    """Decides tokens; created once per engine from `manifest.decoding`.

    width: tokens that a decoding row brings into a step at most.
    """

    width: int

    def decode(self, outputs: Outputs, requests: Sequence[Generation], fed: Sequence[list[int]]) -> Emission:
        """Return the next tokens of `requests`; may overwrite `outputs`.

        fed: when width is above 1, the tokens that each request brought into the step behind one that the model had chosen; its
        rows are then one more than those, in order. Otherwise each request has one row, and `fed` is empty.
        """
        ...


class Autoregressive:
    """One token per row and step, chosen by the row's own Sampling."""

    width = 1

    def decode(self, outputs: Outputs, requests: Sequence[Generation], fed: Sequence[list[int]]) -> Emission:
        """Return one token per request."""
        return Emission(*choose(outputs, requests))


class MultiToken:
    """The model's own token and the guesses of its heads at those behind it, for requests that decode greedily.

    Without verification every guess stands, and the model's own choices, known a step later, only count how many of them it
    shares. With verification guesses are drafts: those stand that the model would have chosen, so what comes out is what
    plain decoding would give. A request that samples, or changes logits, gets one token a step.
    """

    def __init__(self, width: int, *, verify: bool) -> None:
        self.width = width
        self._verify = verify

    def decode(self, outputs: Outputs, requests: Sequence[Generation], fed: Sequence[list[int]]) -> Emission:
        """Return one token or more per request."""
        assert outputs.drafts is not None and outputs.draft_counts is not None
        greedy, drafts, counts = outputs.greedy.tolist(), outputs.drafts.tolist(), outputs.draft_counts.tolist()
        more, start = list[Continuation](), 0
        for request, brought in zip(requests, fed, strict=True):
            own = greedy[start : start + len(brought) + 1]
            agreed = len(brought) if own[:-1] == brought else self._agreed(own, brought)
            request.count_guesses(len(brought), agreed)
            last = start + (agreed if self._verify else len(brought))
            guesses = drafts[last][1 : counts[last]] if request.is_plain_greedy else []
            if self._verify:
                room = request.room - agreed - 2  # behind the last token nothing is decided, so nothing is checked
                more.append(Continuation([*brought[:agreed], own[agreed]], agreed, guesses[: max(room, 0)]))
            else:
                more.append(Continuation([own[-1], *guesses]))
            start += len(own)
        logprobs: list[Logprobs | None] = [None] * len(requests)
        if not all(request.is_plain_greedy for request in requests):
            lasts = np.cumsum([1 + len(brought) for brought in fed]) - 1
            chosen, logprobs = choose(Outputs(outputs.logits[lasts], outputs.greedy[lasts]), requests)
            for i, request in enumerate(requests):
                if not request.is_plain_greedy:
                    more[i] = Continuation([int(chosen[i])])
        return Emission(np.array([each.tokens[0] for each in more], np.int64), logprobs, more)

    def _agreed(self, own: Sequence[int], guesses: Sequence[int]) -> int:
        """How many guesses are the model's own choices; with verification, those before the first that is not."""
        same = [mine == guess for mine, guess in zip(own, guesses, strict=False)]
        return [*same, False].index(False) if self._verify else sum(same)


def _multi_token(decoding: Mapping[str, Any]) -> MultiToken:
    width, verify = decoding.get("k"), decoding.get("verify", False)
    if type(width) is not int or width < 2 or type(verify) is not bool:
        raise ArtifactError(
            f"manifest.json: decoding: got k {width!r} and verify {verify!r}, expected a number from 2 on and true or false; "
            "build the engine again"
        )
    return MultiToken(width, verify=verify)


DECODERS: dict[str, Callable[[Mapping[str, Any]], Decoder]] = {
    "autoregressive": lambda _: Autoregressive(),
    "multi_token": _multi_token,
}


def open_decoder(manifest: Manifest) -> Decoder:
    """Return the decoder of the manifest's decoding kind.

    Raises:
        ArtifactError: this version does not know the kind, or not its settings.
    """
    kind = manifest.decoding.get("kind")
    if kind not in DECODERS:
        known = ", ".join(DECODERS)
        raise ArtifactError(
            f"manifest.json: decoding.kind: got {kind!r}, expected one of {known}; upgrade enginewright"
        )
    return DECODERS[kind](manifest.decoding)
