"""The step loop: schedules, runs and delivers step after step, on one thread."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeAlias

from enginewright.runtime.backends.session import Session
from enginewright.runtime.decoding.program import Emission, Program
from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.request import Request, describe
from enginewright.runtime.scheduling.scheduler import Scheduler
from enginewright.runtime.scheduling.step import Step


@dataclass(frozen=True, slots=True)
class Submit:
    """A message to the loop: queue these programs, in order and for the same step."""

    programs: tuple[Program, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """A message to the loop: end these requests before the next step."""

    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Do:
    """A message to the loop: call `action` between two steps, and fill `result`."""

    action: Callable[[], None]
    result: Future[None]


class Close:
    """A message to the loop: end the thread after the current step."""


Message: TypeAlias = Submit | Cancel | Do | Close


@dataclass(frozen=True, slots=True)
class StepTiming:
    """Times and counts of one step; created by the StepLoop, which hands it to its observer.

    start, end: begin and end of the step, in seconds of `time.perf_counter`.
    backend_seconds: time that the backend ran within the step.
    tokens: tokens computed in the step, over all rows.
    sampled: number of requests that got a token.
    decided: number of tokens that they got.
    """

    start: float
    end: float
    backend_seconds: float
    tokens: int
    sampled: int
    decided: int


class StepLoop:
    """Takes requests from any thread, and serves them on a thread of its own until it is closed; created by `load`.

    observer: called after each step, on the loop's thread; None, unless something that measures sets it.
    """

    def __init__(self, scheduler: Scheduler, session: Session) -> None:
        self.scheduler = scheduler
        self.session = session
        self.observer: Callable[[StepTiming], None] | None = None
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._acted_on: Message | None = None  # the message that was read last
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._failure: BaseException | None = None  # what ended the loop, if it was not closed
        self._process = os.getpid()

    def submit(self, *programs: Program) -> None:
        """Queue `programs`, in order and for the same step; starts the thread on first use."""
        self._send(Submit(programs))

    def between_steps(self, action: Callable[[], None]) -> None:
        """Call `action` on the loop's thread, before the next step, and wait for it; raises what it raises.

        Raises:
            RequestError: the loop is closed, or this is its own thread, which would wait for itself, or another process.
        """
        self.check_may_wait()
        result: Future[None] = Future()
        self._send(Do(action, result))
        result.result()

    def check_may_wait(self) -> None:
        """Raise RequestError where this is the loop's own thread, which would wait for itself, or a fork without the thread."""
        self.check_process()
        if threading.current_thread() is self._thread:
            raise RequestError(
                "LLM: got a call from on_event, or the like, that waits for the step loop on its own thread; call it from another "
                "thread"
            )

    def check_process(self) -> None:
        """Raise RequestError in a process that was forked from the loop's own: it has the memory, but not the threads."""
        if self._is_fork():
            raise RequestError(
                f"LLM: got a call in process {os.getpid()}, which was forked from {self._process}, where the engine was loaded and "
                "its threads are; load the engine in this process, after the fork, or start the process by spawn"
            )

    def cancel(self, *requests: Request) -> None:
        """End `requests` before the next step; requests that have ended already stay as they are."""
        if not self._is_fork():
            self._inbox.put(Cancel(requests))

    def close(self) -> None:
        """Cancel all live requests and end the thread after the current step; may be called again.

        In a forked process it does nothing: thread and requests are the parent's, and a lock may have been held at the fork.
        """
        if self._is_fork():
            return
        with self._lock:
            self._closed = True
            self._inbox.put(Close())
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def step(self) -> tuple[Step, Emission]:
        """Run one step, which brings every running request closer to its end."""
        step = self.scheduler.schedule()
        emission = step.takes.take(self.session.run(step.packed))
        self.scheduler.commit(step, emission)
        self._deliver(emission)
        self.scheduler.evict_due(self.session)
        return step, emission

    def _is_fork(self) -> bool:
        """Whether this process was forked from the one that created the loop."""
        return os.getpid() != self._process

    def _send(self, message: Message) -> None:
        self.check_process()
        with self._lock:
            if self._closed:
                why = "closed" if self._failure is None else f"ended by {describe(self._failure)}"
                raise RequestError(
                    f"LLM: {why}, so it takes no more requests; load the engine again"
                ) from self._failure
            if self._thread is None:
                # a daemon, because the interpreter must not wait for it before its exit hooks, one of which closes the engine
                self._thread = threading.Thread(target=self._serve, name="enginewright", daemon=True)
                self._thread.start()
            self._inbox.put(message)

    def _deliver(self, emission: Emission) -> None:
        """Hand the tokens to their requests, and remove the requests that have ended."""
        if emission.logprobs is None:
            for request, tokens in zip(emission.requests, emission.tokens, strict=True):
                if request.receive(tokens):
                    self.scheduler.remove(request)
        else:
            for request, tokens, logprobs in zip(emission.requests, emission.tokens, emission.logprobs, strict=True):
                if request.receive(tokens, logprobs):
                    self.scheduler.remove(request)
        for ended in emission.ended:
            self.scheduler.remove(ended)

    def _serve(self) -> None:
        """Serve until closed. An error outside of a step ends every request, and later ones are refused."""
        try:
            self._step_until_closed()
        except (
            BaseException
        ) as error:  # also SystemExit, and panics of libraries: or else all owners would wait for ever
            with self._lock:
                self._closed, self._failure = True, error
            self._end_all(error)
            raise

    def _end_all(self, cause: BaseException) -> None:
        """End all requests, those in the inbox among them, because `cause` has ended the loop."""
        error = RequestError(f"LLM: the step loop has ended: {describe(cause)}; load the engine again")
        error.__cause__ = cause
        unread = [] if self._acted_on is None else [self._acted_on]
        while not self._inbox.empty():
            unread.append(self._inbox.get())
        requests = self.scheduler.live()
        for message in unread:
            if isinstance(message, Submit):
                requests += [program.request for program in message.programs]
            elif isinstance(message, Do) and not message.result.done():
                message.result.set_exception(error)
        for request in requests:
            if not request.done.is_set():
                request.fail(error)

    def _step_until_closed(self) -> None:
        """Step while there is work, wait while there is none."""
        while self._read_inbox():
            start, spent = time.perf_counter(), self.session.run_seconds
            try:
                step, emission = self.step()
            except Exception as error:  # of any kind: it is raised where the requests' owners wait
                self._fail(error)
                continue
            if (observer := self.observer) is not None:
                backend = self.session.run_seconds - spent
                tokens = len(step.packed.input_ids)
                observer(
                    StepTiming(start, time.perf_counter(), backend, tokens, len(emission.requests), emission.decided)
                )
        for request in self.scheduler.live():
            request.cancel()

    def _read_inbox(self) -> bool:
        """Act on the messages that have arrived, and wait for one only when there is nothing to run; False once closed."""
        while self.scheduler.is_idle or not self._inbox.empty():
            message = self._acted_on = self._inbox.get()
            if isinstance(message, Close):
                return False
            if isinstance(message, Submit):
                for program in message.programs:
                    self.scheduler.submit(program)
                continue
            if isinstance(message, Do):
                _do(message)
                continue
            for request in message.requests:
                if not request.done.is_set():
                    self.scheduler.remove(request)
                    request.cancel()
        return True

    def _fail(self, error: Exception) -> None:
        """End every request that the failed step may have touched; requests that still wait go on."""
        for entry in list(self.scheduler.running) or list(self.scheduler.waiting):
            self.scheduler.remove(entry.request)
            entry.request.fail(error)


def _do(message: Do) -> None:
    """Call the message's action, and hand over what it raises to the thread that waits for it."""
    try:
        message.action()
    except BaseException as error:  # of any kind: it is raised where the caller waits
        message.result.set_exception(error)
    else:
        message.result.set_result(None)
