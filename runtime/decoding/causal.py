"""The common part of programs that read their tokens from left to right: reading of known tokens, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.cache.pieces import Pieces
from enginewright.runtime.decoding.program import Feed, Room
from enginewright.runtime.requests.request import Generation

Ints = NDArray[np.int64]

_NONE = np.zeros(0, np.int64)


class CausalProgram:
    """Reads a prompt, or all known tokens of a request that comes back, then brings the newest token and its drafts.

    A decoding kind's program inherits from it, decides in `take`, and guesses there by `check_next`.

    request: the request.
    drafts: guesses at the tokens after the known ones, which the next step checks.
    judged: how many tokens at the end of the next feed the model judges: the drafts, or guesses that became tokens.
    """

    shares_prefix = True

    def __init__(self, request: Generation, pieces: Pieces) -> None:
        self.request = request
        self.drafts: Sequence[int] = ()
        self.judged = 0
        self._pieces = pieces

    def is_steady(self, held: int) -> bool:
        """Whether all pending tokens, at most `width`, go into the next step."""
        return self.request.length + len(self.drafts) - held <= self.judged + 1

    def feed(self, held: int, room: Room) -> Feed | None:
        """Return the next piece of the known tokens, or the newest tokens with the drafts."""
        request = self.request
        known = request.length
        pending = known + len(self.drafts) - held
        if pending <= self.judged + 1:
            if pending > room.before_cut and self.drafts:
                self._drop_drafts(max(room.before_cut - (known - held), 0))
            count = known + len(self.drafts) - held
        else:
            if held < request.prompt_tokens and self._pieces.chunk:
                count = self._pieces.of_prompt(held, min(request.prompt_tokens - held, room.before_cut), room.tokens)
            else:
                count = self._pieces.of_tokens(held, min(pending, room.before_cut), room.tokens)
            if not count:
                return None
        end = held + count
        tokens = request.tokens[held : min(end, known)]
        if end > known:
            tokens = np.concatenate([tokens, np.asarray(self.drafts[: end - known], np.int64)])
        is_ready = end == known + len(self.drafts)
        wanted = np.arange(count - 1 - self.judged, count) if is_ready else _NONE
        return Feed(tokens, np.arange(held, end), wanted, is_ready and not request.is_plain_greedy)

    def check_next(self, guesses: Sequence[int], after: int) -> None:
        """Let the next step check `guesses`, as many of them as are of use, and as it can take back.

        A guess that would follow the request's last token is not worth checking.

        guesses: at the tokens that follow those that this step decides; a step takes no more than `width` - 1.
        after: the number of tokens that this step decides.
        """
        room = max(self.request.tokens_left - after - 1, 0)
        self.drafts = self._pieces.checkable(self.request.length + after, list(guesses[:room]))
        self.judged = len(self.drafts)

    def leave(self) -> None:
        """Forget the drafts."""
        self.drafts, self.judged = (), 0

    def _drop_drafts(self, left: int) -> None:
        self.drafts = self.drafts[:left]
        self.judged = len(self.drafts)
