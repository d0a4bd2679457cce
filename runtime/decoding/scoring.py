"""The program of a Scoring: reads a text, and hands out the logits of every position."""

from __future__ import annotations

import numpy as np

from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.cache.pieces import Pieces
from enginewright.runtime.decoding.program import Feed, Room, Taken
from enginewright.runtime.requests.request import Scoring


class ScoringProgram:
    """Reads the text of a Scoring piece by piece, with as many rows of logits as a step can give; created by the LLM."""

    shares_prefix = False  # every position is computed anyway

    def __init__(self, request: Scoring, pieces: Pieces) -> None:
        self.request = request
        self._pieces = pieces

    def is_steady(self, held: int) -> bool:
        """Whether one token is left, whose row of logits every row has."""
        return self.request.length - held <= 1

    def feed(self, held: int, room: Room) -> Feed | None:
        """Return the next piece of the text; all of its logits are wanted."""
        pending = self.request.length - held
        count = pending
        if pending > 1:
            count = self._pieces.of_tokens(held, min(pending, room.before_cut), min(room.tokens, room.wanted))
        if not count:
            return None
        end = held + count
        return Feed(self.request.tokens[held:end], np.arange(held, end), np.arange(count), reads_logits=True)

    def take(self, feed: Feed, outputs: Outputs) -> Taken:
        """Hand out the logits. An exception of the request's owner ends the request."""
        try:
            is_over = self.request.receive(int(feed.positions[0]), outputs.logits)
        except BaseException as error:  # of any kind: it is raised where the owner waits; other requests go on
            self.request.fail(error)
            is_over = True
        return Taken(len(feed.tokens), is_over=is_over)

    def leave(self) -> None:
        """Keep nothing: positions whose logits were handed out are computed again, but not handed out again."""
