"""A sample decoding kind that fills an input of the graph for each token."""

from __future__ import annotations

import dataclasses

import numpy as np

from enginewright.runtime.cache.pieces import Pieces
from enginewright.runtime.decoding.kind import DecodingKind
from enginewright.runtime.decoding.kinds.autoregressive import Autoregressive, NextToken
from enginewright.runtime.decoding.program import Feed, Program, Room
from enginewright.runtime.requests.request import Generation


class Placed(Autoregressive):
    """Plain decoding whose feeds say of each token whether it is marked."""

    def __init__(self, pieces: Pieces, *, marked: bool) -> None:
        super().__init__(pieces)
        self._marked = marked

    def start(self, request: Generation) -> Program:
        """Return the program of a new request."""
        return MarkedToken(request, self._pieces, marked=self._marked)

    def steady(self, programs: object, rows: int) -> None:
        """Let the programs run one by one, because their feeds are more than tokens."""


class MarkedToken(NextToken):
    """The program of a request whose tokens are marked, or not."""

    def __init__(self, request: Generation, pieces: Pieces, *, marked: bool) -> None:
        super().__init__(request, pieces)
        self._marked = marked

    def feed(self, held: int, room: Room) -> Feed | None:
        """Add the marks to the feed."""
        feed = super().feed(held, room)
        if feed is None or not self._marked:
            return feed
        return dataclasses.replace(feed, ports={"marks": np.ones(len(feed.tokens), np.int32)})


KIND = DecodingKind(
    name="placed",
    open=lambda decoding, pieces: Placed(pieces, marked=bool(decoding.get("marked"))),
    inputs=("marks",),
)
