"""Serves many clients' requests in one in-flight batch: sends the responses, and gives up requests that are too late.

One thread answers all clients. The step loop's thread puts the tokens that it decides into a queue, and goes on. The tokens
that have gathered for a client, while other clients were answered, leave as one response.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol, TypeAlias

from enginewright.runtime.errors import EnginewrightError, RequestError
from enginewright.runtime.llm import LLM
from enginewright.runtime.requests.completion import Completion, Event, Logprobs, Token
from enginewright.runtime.scheduling.handle import Handle
from enginewright.runtime.triton.counters import Ending, InstanceCounters, Publisher, SilentPublisher, Values
from enginewright.runtime.triton.served_request import ServedRequest

_WATCH_SECONDS = 0.01
_WATCH_SHARE = 0.02
_REPORT_SECONDS = 0.5
_SETTLE_SECONDS = 0.05


class QueueFullError(RequestError):
    """The queue is full: no more requests may wait."""


class CancelledError(RequestError):
    """The client has cancelled its request, or the model is being unloaded."""


class TimedOutError(RequestError):
    """A request did not end within its timeout."""


class GoneError(EnginewrightError):
    """A response could not be sent, because no client waits for it any more."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A response: the part of a reply that is new since the response before.

    text: the new text.
    token_ids: the new tokens.
    logprobs: one entry for each new token, where the request asks for them.
    end: the whole completion, in the last response alone.
    """

    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[Logprobs] = ()
    end: Completion | None = None


class Client(Protocol):
    """The sender of a request: takes responses until the last one or an error, from one thread at a time."""

    def send(self, piece: Piece) -> None:
        """Send a response, which is the last one if `piece` has an end.

        Raises:
            GoneError: the client takes no responses any more.
        """
        ...

    def fail(self, error: Exception) -> None:
        """Send an error as the last response.

        Raises:
            GoneError: the client takes no responses any more.
        """
        ...

    def is_cancelled(self) -> bool:
        """Whether the client has cancelled the request."""
        ...


@dataclass(eq=False, slots=True)
class _LiveRequest:
    """A request whose last response has not been sent; created by `Server.submit`.

    client: takes the responses.
    request: what the client asked for.
    began: time of arrival, in seconds of `time.perf_counter`.
    handle: the LLM's handle; set as soon as the request is submitted.
    has_token: whether it has got a token; set on the step loop's thread.
    given_up: if it ends early: the error that the client gets, how that counts, and the number of steps run by then.
    tokens: tokens that have not been sent.
    end: the completion or the error, as soon as it is there.
    """

    client: Client
    request: ServedRequest
    began: float
    handle: Handle | None = None
    has_token: bool = False
    given_up: tuple[Exception, Ending, int] | None = None
    tokens: list[Token] = field(default_factory=list)
    end: Completion | Exception | None = None


Message: TypeAlias = tuple[_LiveRequest, Event] | None


class Server:
    """Serves an engine to many clients until it is closed; created by the model.

    llm: the engine, which the server closes.
    max_queue: the most requests that may wait for a row.
    publisher: shows the metrics; None for no metrics.
    counters: the counts that the metrics are made of.
    """

    def __init__(self, llm: LLM, *, max_queue: int, publisher: Publisher | None = None) -> None:
        self.llm = llm
        self.counters = InstanceCounters()
        self._most_requests = llm.capacity.rows + max_queue
        self._max_queue = max_queue
        self._publisher = publisher or SilentPublisher()
        self._live: set[_LiveRequest] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._events: SimpleQueue[Message] = SimpleQueue()
        self._next_watch = self._next_report = 0.0
        self._reported: Values = {}
        self._is_settled = True  # the step loop's thread may still run a step after the last client is answered
        llm.loop.observer = self.counters.step
        self._thread = threading.Thread(target=self._answer_all, name="enginewright-answers", daemon=True)
        self._thread.start()

    def submit(self, request: ServedRequest, client: Client) -> None:
        """Queue a request, and answer its client from now on.

        Raises:
            RequestError: it cannot be served, or too many requests wait; then nothing has been sent to `client`.
        """
        live = _LiveRequest(client, request, time.perf_counter())
        with self._lock:
            if self._closed:
                raise CancelledError("model: is being unloaded, so it takes no more requests")
            if len(self._live) >= self._most_requests:
                raise QueueFullError(
                    f"queue: full, {self.llm.capacity.rows} requests run and {self._max_queue} wait; try again later"
                )
            self._live.add(live)
        try:
            live.handle = self.llm.submit(
                request.prompt,
                request.sampling,
                priority=request.priority,
                on_event=lambda event: self._on_event(live, event),
            )
        except BaseException:
            with self._lock:
                self._live.remove(live)
            raise
        self._events.put(None)  # so that the new request is watched

    def refuse(self, client: Client, error: Exception) -> None:
        """Send the error to the client of a request that was not accepted."""
        self.counters.end("refused")
        _try_fail(client, error)
        self._events.put(None)

    def close(self) -> None:
        """Cancel all requests, answer their clients, and stop; may be called again."""
        with self._lock:
            self._closed = True
        self.llm.close()
        self._events.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _on_event(self, live: _LiveRequest, event: Event) -> None:
        """Queue an event of `live` for the answering thread; called on the step loop's thread."""
        if isinstance(event, Token):
            if not live.has_token:
                live.has_token = True
                self.counters.first_token(time.perf_counter() - live.began)
            if not live.request.stream:
                return
        elif live.given_up is not None and live.given_up[1] == "cancelled":
            self.counters.cancel_steps = max(self.counters.cancel_steps, self.counters.steps - live.given_up[2])
        self._events.put((live, event))

    def _answer_all(self) -> None:
        """Send the responses, until the server is closed and every client is answered."""
        while self._live or not self._closed:
            touched = dict[_LiveRequest, None]()
            for message in self._gather():
                if message is None:
                    continue
                live, event = message
                touched[live] = None
                if isinstance(event, Token):
                    live.tokens.append(event)
                else:
                    live.end = event
            for live in touched:
                self._answer(live)
            now = time.perf_counter()
            if now >= self._next_watch and not self._closed:
                self._watch(now)
            if now >= self._next_report or not self._live:
                self._report(now)
        self._report(time.perf_counter())

    def _gather(self) -> list[Message]:
        """Return the messages that have come; wait for one, but no longer than until the next look at all requests."""
        wait = None if self._is_settled else _SETTLE_SECONDS
        if self._live:
            wait = max(self._next_watch - time.perf_counter(), 0.001)
        messages: list[Message] = []
        try:
            messages.append(self._events.get(timeout=wait))
            while True:
                messages.append(self._events.get_nowait())
        except Empty:
            return messages

    def _answer(self, live: _LiveRequest) -> None:
        """Send one client the tokens that have gathered, and the end if it has come."""
        tokens, live.tokens = live.tokens, []
        error = live.end if isinstance(live.end, Exception) else None
        outcome: Ending = "completed" if error is None else "failed"
        if live.end is not None and live.given_up is not None:
            error, outcome, _ = live.given_up
        try:
            if error is not None:
                live.client.fail(error)
            elif isinstance(live.end, Completion):
                if live.end.finish_reason == "cancelled":
                    outcome = "cancelled"
                    live.client.fail(CancelledError("request: cancelled, because the model is being unloaded"))
                else:
                    live.client.send(_piece(tokens, live.end) if live.request.stream else _whole(live.end))
            elif live.given_up is None:
                live.client.send(_piece(tokens))
        except GoneError as gone:
            self._give_up(live, gone, "cancelled")
        except Exception as unknown:  # of any kind: it concerns this client alone, and the others are served on
            outcome = "failed"
            _try_fail(live.client, unknown)
            self._give_up(live, unknown, outcome)
        if live.end is not None:
            self.counters.end(outcome)
            with self._lock:
                self._live.remove(live)

    def _watch(self, now: float) -> None:
        """Give up requests that are cancelled or whose time is over.

        This takes a small share of the thread's time, however many requests there are.
        """
        with self._lock:
            lives = list(self._live)
        for live in lives:
            if live.given_up is not None or live.handle is None:
                continue
            if live.request.timeout is not None and now - live.began > live.request.timeout:
                self._give_up(
                    live,
                    TimedOutError(f"request: not done after {live.request.timeout:g} seconds, the time it was given"),
                    "timed_out",
                )
            elif live.client.is_cancelled():
                self._give_up(live, CancelledError("request: cancelled by its client"), "cancelled")
        spent = time.perf_counter() - now
        self._next_watch = now + spent + max(_WATCH_SECONDS, spent / _WATCH_SHARE)

    def _give_up(self, live: _LiveRequest, error: Exception, outcome: Ending) -> None:
        """Tell the engine to end `live` before its next step; the client is answered when that is done."""
        if live.given_up is None and live.handle is not None:
            live.given_up = (error, outcome, self.counters.steps)
            live.handle.cancel()

    def _report(self, now: float) -> None:
        """Publish the metrics."""
        self._next_report = now + _REPORT_SECONDS
        state = self.llm.loop.scheduler.snapshot()
        waiting = max(len(self._live) - state.running, 0)  # those that have not reached the scheduler yet, too
        values = self.counters.report(now, cache_use=state.cache_use, running=state.running, waiting=waiting)
        self._publisher.publish(values)
        self._is_settled = values == self._reported and not state.running
        self._reported = values


def _piece(tokens: Sequence[Token], end: Completion | None = None) -> Piece:
    logprobs = [token.logprobs for token in tokens if token.logprobs is not None]
    return Piece("".join(token.text for token in tokens), [token.id for token in tokens], logprobs, end)


def _whole(end: Completion) -> Piece:
    return Piece(end.text, end.token_ids, end.logprobs or (), end)


def _try_fail(client: Client, error: Exception) -> None:
    try:
        client.fail(error)
    except GoneError:
        return
