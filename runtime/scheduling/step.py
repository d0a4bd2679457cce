"""One step of the scheduler: the packed tokens, and the requests that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.backends.session import Outputs, PackedStep
from enginewright.runtime.decoding.program import Emission, Feed, Program
from enginewright.runtime.requests.completion import Logprobs
from enginewright.runtime.requests.request import Generation, Request

Ints = NDArray[np.int64]


@dataclass(eq=False, slots=True)
class QueuedProgram:
    """A program in the queue or in a row; `Scheduler.submit` creates it.

    spans: keys of the prompt's spans that the prefix cache may know.
    published: how many of the spans other requests can find.
    """

    program: Program
    spans: list[bytes] = field(default_factory=list)
    published: int = 0

    @property
    def request(self) -> Request:
        """The program's request."""
        return self.program.request

    @property
    def row(self) -> int:
        """The request's row, while it has one."""
        row = self.program.request.row
        assert row is not None
        return row


class Takes(Protocol):
    """The part of a step that turns outputs into decisions: a SteadyBatch, or the feeds of single rows."""

    def take(self, outputs: Outputs) -> Emission:
        """Return what the step decided for all rows; may overwrite `outputs`."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One step; created by the Scheduler.

    packed: the tokens, as a session takes them.
    takes: turns the outputs into decisions.
    reading: the entries that have tokens in the step, and spans that may be shared as prefixes.
    """

    packed: PackedStep
    takes: Takes
    reading: Sequence[QueuedProgram] = ()


class FedRows:
    """The feeds of single rows, in the order of the rows, where they are not all steady."""

    def __init__(self, feeds: Sequence[tuple[Program, Feed]], rows: int) -> None:
        self._feeds = feeds
        self._rows = rows

    def take(self, outputs: Outputs) -> Emission:
        """Let each program take its own part of the outputs."""
        kept: Ints = np.zeros(self._rows, np.int64)
        requests, tokens = list[Generation](), list[list[int]]()
        logprobs, ended, start = list[Logprobs | None](), list[Request](), 0
        for program, feed in self._feeds:
            end = start + len(feed.wanted)
            taken = program.take(feed, outputs[start:end])
            start, request = end, program.request
            kept[request.row] = taken.kept
            if taken.tokens:
                assert isinstance(request, Generation)
                requests.append(request)
                tokens.append(taken.tokens)
                logprobs.append(taken.logprobs)
            if taken.is_over:
                ended.append(request)
        return Emission(kept, requests, tokens, logprobs, ended)
