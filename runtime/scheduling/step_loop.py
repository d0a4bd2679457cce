"""The step loop: schedules, runs and delivers step after step, on one thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeAlias

from enginewright.runtime.backends.session import Floats, Session
from enginewright.runtime.decoding.decoder import Decoder, Emission
from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.request import Request
from enginewright.runtime.scheduling.scheduler import Scheduler
from enginewright.runtime.scheduling.step import Step


@dataclass(frozen=True, slots=True)
class Submit:
    """A message to the loop: queue these requests, in order and for the same step."""

    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """A message to the loop: end these requests before the next step."""

    requests: tuple[Request, ...]


class Close:
    """A message to the loop: end the thread after the current step."""


Message: TypeAlias = Submit | Cancel | Close


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

    def __init__(self, scheduler: Scheduler, session: Session, decoder: Decoder) -> None:
        self.scheduler = scheduler
        self.session = session
        self.decoder = decoder
        self.observer: Callable[[StepTiming], None] | None = None
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, *requests: Request) -> None:
        """Queue `requests`, in order and for the same step; starts the thread on first use."""
        with self._lock:
            if self._closed:
                raise RequestError("LLM: closed, so it takes no more requests; load the engine again")
            if self._thread is None:
                # a daemon, because the interpreter must not wait for it before its exit hooks, one of which closes the engine
                self._thread = threading.Thread(target=self._serve, name="enginewright", daemon=True)
                self._thread.start()
            self._inbox.put(Submit(requests))

    def cancel(self, *requests: Request) -> None:
        """End `requests` before the next step; requests that have ended already stay as they are."""
        self._inbox.put(Cancel(requests))

    def close(self) -> None:
        """Cancel all live requests and end the thread after the current step; may be called again."""
        with self._lock:
            self._closed = True
            self._inbox.put(Close())
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def step(self) -> tuple[Step, Emission]:
        """Run one step, which brings every running request closer to its end."""
        step = self.scheduler.schedule()
        outputs = self.session.run(step.packed)
        decided = outputs if len(outputs.greedy) == step.decided_rows else outputs[: step.decided_rows]
        emission = self.decoder.decode(decided, step.sampled, step.drafts)
        self.scheduler.commit(step, emission)
        self._deliver(step, outputs.logits, emission)
        self.scheduler.tables.evict_due(self.session)
        return step, emission

    def _deliver(self, step: Step, logits: Floats, emission: Emission) -> None:
        """Hand tokens and logits to their requests, and remove the requests that have ended."""
        if emission.continuations is None:
            tokens = [[token] for token in emission.tokens.tolist()]
        else:
            tokens = [each.tokens for each in emission.continuations]
        for request, own, logprobs in zip(step.sampled, tokens, emission.logprobs, strict=True):
            if request.receive(own, logprobs):
                self.scheduler.remove(request)
        row = step.decided_rows
        for scoring, position, count in step.scored:
            if scoring.receive(position, logits[row : row + count]):
                self.scheduler.remove(scoring)
            row += count

    def _serve(self) -> None:
        """Step while there is work, wait while there is none, until closed."""
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
                observer(StepTiming(start, time.perf_counter(), backend, tokens, len(step.sampled), emission.decided))
        for request in self.scheduler.live():
            request.cancel()

    def _read_inbox(self) -> bool:
        """Act on the messages that have arrived, and wait for one only when there is nothing to run; False once closed."""
        while self.scheduler.is_idle or not self._inbox.empty():
            message = self._inbox.get()
            if isinstance(message, Close):
                return False
            if isinstance(message, Submit):
                for request in message.requests:
                    self.scheduler.submit(request)
                continue
            for request in message.requests:
                if not request.done.is_set():
                    self.scheduler.remove(request)
                    request.cancel()
        return True

    def _fail(self, error: Exception) -> None:
        """End every request that the failed step may have touched; requests that still wait go on."""
        for request in list(self.scheduler.running) or list(self.scheduler.waiting):
            self.scheduler.remove(request)
            request.fail(error)
