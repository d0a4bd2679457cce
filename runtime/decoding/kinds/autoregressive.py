"""Plain decoding: one token for each request in a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.cache.pieces import Pieces
from enginewright.runtime.decoding.causal import CausalProgram
from enginewright.runtime.decoding.decode_layout import DecodeLayout, layout_of
from enginewright.runtime.decoding.kind import DecodingKind
from enginewright.runtime.decoding.program import Emission, Feed, Program, SteadyBatch, Taken
from enginewright.runtime.decoding.sampler import choose_token, choose_tokens
from enginewright.runtime.decoding.scoring import ScoringProgram
from enginewright.runtime.requests.request import Generation, Scoring

Ints = NDArray[np.int64]


class Autoregressive:
    """Decides one token for each request in a step, by the request's own Sampling; created by KIND."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces

    def start(self, request: Generation) -> Program:
        """Return the program of a new request."""
        return NextToken(request, self._pieces)

    def score(self, request: Scoring) -> Program:
        """Return the program of a text to score."""
        return ScoringProgram(request, self._pieces)

    def warn_of(self, request: Generation) -> None:
        """All requests get one token a step."""

    def steady(self, programs: Sequence[Program], rows: int) -> SteadyBatch | None:
        """Return the rows as arrays, where all of them are of this kind."""
        own = [program for program in programs if isinstance(program, NextToken)]
        return NextTokens(own, rows) if len(own) == len(programs) else None


class NextToken(CausalProgram):
    """The program of a request that gets one token a step."""

    def take(self, feed: Feed, outputs: Outputs) -> Taken:
        """Choose the next token, once all known tokens have been read."""
        if not len(feed.wanted):
            return Taken(len(feed.tokens))
        token, logprobs = int(outputs.greedy[0]), None
        if not self.request.is_plain_greedy:
            token, logprobs = choose_token(outputs.logits[0], token, self.request)
        return Taken(len(feed.tokens), [token], logprobs)


class NextTokens:
    """A SteadyBatch of requests that get one token a step."""

    def __init__(self, programs: Sequence[NextToken], rows: int) -> None:
        self._requests = [program.request for program in programs]
        new_tokens = np.zeros(rows, np.int64)
        new_tokens[[request.row or 0 for request in self._requests]] = 1
        self._layout = layout_of(new_tokens.tobytes())
        self._newest: Ints = np.array([request.tokens[request.length - 1] for request in self._requests], np.int64)
        self.reads_logits = not all(request.is_plain_greedy for request in self._requests)

    def layout(self) -> DecodeLayout:
        """Return one token for each row."""
        return self._layout

    def feed(self, held: Ints) -> tuple[Ints, Ints]:
        """Return each row's newest token."""
        return self._newest, held[self._layout.rows]

    def take(self, outputs: Outputs) -> Emission:
        """Choose the next token of each row."""
        logprobs = None
        if self.reads_logits:
            self._newest, logprobs = choose_tokens(outputs, self._requests)
        else:
            self._newest = outputs.greedy.copy()
        tokens = [[token] for token in self._newest.tolist()]
        return Emission(self._layout.new_tokens, self._requests, tokens, logprobs)


KIND = DecodingKind(name="autoregressive", open=lambda _, pieces: Autoregressive(pieces))
