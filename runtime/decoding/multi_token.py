"""Decoding with extra heads: several tokens for each request in a step, with or without verification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.decoding.decoder import Continuation, Emission
from enginewright.runtime.decoding.sampler import choose_tokens
from enginewright.runtime.errors import ArtifactError
from enginewright.runtime.requests.completion import Logprobs
from enginewright.runtime.requests.request import Generation

OUTPUTS = ("clp_tokens", "clp_counts")
"""The graph's outputs that it reads: int64 [N, k], the greedy token and the heads' guesses at those after it; and int64
[N], how many of them count, at least 1."""


class MultiToken:
    """Decides the model's own token, and uses its heads' guesses at the following ones; created by `open_multi_token`.

    Without verification, every guess becomes a token. The model's own choices, known one step later, serve only to count
    how many guesses it agrees with. With verification, the guesses are drafts: those that the model would have chosen
    become tokens, so that the output is the one that plain decoding gives. A request that samples, or that changes
    logits, gets one token a step.
    """

    def __init__(self, width: int, *, verify: bool) -> None:
        self.width = width
        self._verify = verify

    def decode(self, outputs: Outputs, requests: Sequence[Generation], drafts: Sequence[list[int]]) -> Emission:
        """Return one or more tokens for each request."""
        greedy = outputs.greedy.tolist()
        emitted, counts = (outputs.extra[name].tolist() for name in OUTPUTS)
        continuations, start = list[Continuation](), 0
        for request, brought in zip(requests, drafts, strict=True):
            own = greedy[start : start + len(brought) + 1]
            agreed = len(brought) if own[:-1] == brought else self._agreed(own, brought)
            request.count_guesses(len(brought), agreed)
            last = start + (agreed if self._verify else len(brought))
            guesses = emitted[last][1 : counts[last]] if request.is_plain_greedy else []
            if self._verify:
                # a draft that would follow the request's last token is not worth checking
                room = request.tokens_left - agreed - 2
                continuations.append(Continuation([*brought[:agreed], own[agreed]], agreed, guesses[: max(room, 0)]))
            else:
                continuations.append(Continuation([own[-1], *guesses]))
            start += len(own)
        logprobs: list[Logprobs | None] = [None] * len(requests)
        if not all(request.is_plain_greedy for request in requests):
            lasts = np.cumsum([1 + len(brought) for brought in drafts]) - 1
            chosen, logprobs = choose_tokens(outputs[lasts], requests)
            for i, request in enumerate(requests):
                if not request.is_plain_greedy:
                    continuations[i] = Continuation([int(chosen[i])])
        return Emission(np.array([each.tokens[0] for each in continuations], np.int64), logprobs, continuations)

    def _agreed(self, own: Sequence[int], guesses: Sequence[int]) -> int:
        """How many guesses are the model's own choices; with verification, only those before the first that is not."""
        same = [mine == guess for mine, guess in zip(own, guesses, strict=False)]
        return [*same, False].index(False) if self._verify else sum(same)


def open_multi_token(manifest: Manifest) -> MultiToken:
    """Return the decoder for the manifest's `decoding`: k, the tokens of a step at most, and verify.

    Raises:
        ArtifactError: a setting has the wrong type, or k is below 2, or the graph lacks the heads' outputs.
    """
    width, verify = manifest.decoding.get("k"), manifest.decoding.get("verify", False)
    if type(width) is not int or width < 2 or type(verify) is not bool:
        raise ArtifactError(
            f"manifest.json: decoding: got k {width!r} and verify {verify!r}, expected a whole number from 2 up, and true or false; "
            "build the engine again"
        )
    found = [spec.name for spec in manifest.graphs["decoder"].outputs]
    for name in OUTPUTS:
        if name not in found:
            raise ArtifactError(
                f"manifest.json: decoding: got the kind multi_token and a decoder graph with the outputs {', '.join(found)}, "
                f"expected {name!r} among them; build the engine again"
            )
    return MultiToken(width, verify=verify)
