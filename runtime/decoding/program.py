"""Programs: each takes one request from its first token to its end, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.decoding.decode_layout import DecodeLayout
from enginewright.runtime.requests.completion import Logprobs
from enginewright.runtime.requests.request import Generation, Request, Scoring

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Room:
    """The room that is left in a step for one row; the scheduler creates it.

    tokens: tokens that the step can still take.
    wanted: rows of logits that the step can still give, in addition to the `width` that every row has.
    before_cut: tokens of this row before the cache's policy has to act; no step may go past that point.
    """

    tokens: int
    wanted: int
    before_cut: int


@dataclass(frozen=True, slots=True)
class Feed:
    """The tokens that a row brings into a step; its program creates it.

    tokens[n] int64: their ids; n is at least 1.
    positions[n] int64: their positions in the request, in any order.
    wanted[m] int64: those of the n whose logits are read, in ascending order.
    reads_logits: whether the logits are read, and not only the greedy tokens.
    extent: tokens for which the row needs tiles when the step runs; None: those that it holds and these n.
    ports: values [n] of inputs of the graph that only this decoding kind has, by name; None: there are none.
    """

    tokens: Ints
    positions: Ints
    wanted: Ints
    reads_logits: bool
    extent: int | None = None
    ports: Mapping[str, NDArray[Any]] | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """The outcome of a step for one row; its program creates it.

    kept: how many of the fed tokens stay in the cache, counted from the first; the others are fed again, or were wrong.
    tokens: the tokens that are final now, in order.
    logprobs: those of a single token, where the request asks for them.
    is_over: whether the request has ended otherwise than by its tokens.
    """

    kept: int
    tokens: list[int] = field(default_factory=list)
    logprobs: Logprobs | None = None
    is_over: bool = False


class Program(Protocol):
    """The way of one request through the steps; its decoding kind creates it, and the scheduler runs it.

    request: the request.
    shares_prefix: whether spans of its prompt may come from the prefix cache, and go there.
    """

    @property
    def request(self) -> Request: ...

    @property
    def shares_prefix(self) -> bool: ...

    def is_steady(self, held: int) -> bool:
        """Whether the next feed has at most `width` tokens, all of which have to go into the next step.

        held: tokens of the row in the cache.
        """
        ...

    def feed(self, held: int, room: Room) -> Feed | None:
        """Return what the row brings into the next step; None where `room` is too small for it.

        The step may still be put off, so asking again must be possible.
        """
        ...

    def take(self, feed: Feed, outputs: Outputs) -> Taken:
        """Return what the step decided.

        outputs: those of the feed's `wanted` tokens, in order; they may be overwritten.
        """
        ...

    def leave(self) -> None:
        """Forget whatever is not known for certain, because the row was given up; the request is to be computed anew."""
        ...


@dataclass(frozen=True, slots=True)
class Emission:
    """The decisions of a step for all rows.

    kept[rows] int64: how many of each row's fed tokens stay in the cache.
    requests: the requests that get tokens.
    tokens: the tokens of each of them.
    logprobs: log-probabilities of each of them, for a single token; None where no request asks for any.
    ended: requests that have ended otherwise than by their tokens.
    """

    kept: Ints
    requests: Sequence[Generation]
    tokens: Sequence[list[int]]
    logprobs: Sequence[Logprobs | None] | None = None
    ended: Sequence[Request] = ()

    @property
    def decided(self) -> int:
        """Number of tokens decided, over all requests."""
        return sum(map(len, self.tokens))


class SteadyBatch(Protocol):
    """All running rows of one decoding kind, as arrays, while none of them needs more than its decoding kind's `width`.

    It takes the place of the rows' programs for as long as the same rows run. It keeps the programs up to date, because the
    scheduler may go back to them after any step.

    reads_logits: as in PackedStep.
    """

    @property
    def reads_logits(self) -> bool: ...

    def layout(self) -> DecodeLayout:
        """Return the layout of the next step; the same object as before where it is the same."""
        ...

    def feed(self, held: Ints) -> tuple[Ints, Ints]:
        """Return the step's token ids and their positions, int64 [T], in the layout's order; held[rows]: tokens in the cache."""
        ...

    def take(self, outputs: Outputs) -> Emission:
        """Return what the step decided for all rows; may overwrite `outputs`."""
        ...


class Decoder(Protocol):
    """A decoding kind, opened for one engine."""

    def start(self, request: Generation) -> Program:
        """Return the program of a new request."""
        ...

    def score(self, request: Scoring) -> Program:
        """Return the program of a text to score.

        Raises:
            RequestError: this kind has no logits of a next token.
        """
        ...

    def warn_of(self, request: Generation) -> str | None:
        """Return the reason why this kind serves `request` more slowly than others; None where it does not."""
        ...

    def steady(self, programs: Sequence[Program], rows: int) -> SteadyBatch | None:
        """Return a batch for `programs`, all of them steady and in the order of their rows, out of `rows` rows.

        Return None where they do not all belong to this kind, or where the kind has no such batch.
        """
        ...
