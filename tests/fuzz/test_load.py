"""Many requests on a cache that always preempts: cancelled, streamed, scored, with callbacks that raise whatever there is.

Each request is accounted for, each answer is that of the request alone, and memory stays as it is.
"""

from __future__ import annotations

import gc
import os
import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from enginewright.runtime import LLM, Handle, Sampling
from enginewright.runtime.requests.completion import Event, Token
from enginewright.runtime.requests.logits_processor import Stateless
from enginewright.runtime.requests.request import as_error
from tests.support.fuzzing.figures import Figures
from tests.support.fuzzing.rounds import draws, rounds
from tests.support.runtime.simulated_requests import check_tiles
from tests.support.runtime.toy_model import FULL, greedy, make_llm, reference_logits

PROMPTS = [random.Random(n).choices(range(1, 290), k=1 + 3 * n % 29) for n in range(16)]
LONGEST = 24
ERRORS: list[Callable[[], BaseException]] = [
    lambda: ValueError("its own"),
    lambda: SystemExit(3),
    KeyboardInterrupt,
    GeneratorExit,
    MemoryError,
    lambda: BaseException("bare"),
    StopIteration,
    RecursionError,
]
AT_ONCE = 48


@cache
def alone(number: int) -> list[int]:
    """The answer to a prompt that is alone."""
    return greedy(PROMPTS[number], LONGEST, FULL)


@cache
def scores(number: int) -> np.ndarray:
    """The logits of every position of a prompt that is alone."""
    prompt = PROMPTS[number]
    return np.stack([reference_logits(prompt[: i + 1], FULL) for i in range(len(prompt))])


class Failing(Stateless):
    """A logits processor that raises at a token of its request."""

    def __init__(self, error: BaseException, left: int) -> None:
        self.error, self.left = error, left

    def process(self, logits: np.ndarray, tokens: np.ndarray) -> None:
        """Count, and raise."""
        self.left -= 1
        if self.left < 0:
            raise self.error


class Client:
    """Sends one request of a kind that `draw` chooses, and checks how it ends."""

    def __init__(self, llm: LLM, draw: random.Random) -> None:
        self.number = draw.randrange(len(PROMPTS))
        self.count = draw.randint(1, LONGEST)
        self.error = draw.choice(ERRORS)()
        self.at = draw.randrange(self.count)
        self.kind = draw.choices(
            ("plain", "cancelled", "callback", "raises", "processor", "logprobs"), (50, 10, 10, 10, 10, 10)
        )[0]
        self.events: list[Event] = []
        self.llm = llm
        self.handle = self._submit()
        if self.kind == "cancelled":
            threading.Timer(draw.random() * 0.02, self.handle.cancel).start()

    def _submit(self) -> Handle:
        options: dict[str, object] = {"max_tokens": self.count}
        if self.kind == "processor":
            options["logits_processors"] = {"failing": lambda *_: Failing(self.error, self.at)}
        if self.kind == "logprobs":
            options["logprobs"] = 1
        on_event = self._take if self.kind in ("callback", "raises") else None
        return self.llm.submit(PROMPTS[self.number], Sampling(**options), on_event=on_event)

    def _take(self, event: Event) -> None:
        self.events.append(event)
        if self.kind == "raises" and len(self.events) > self.at:
            raise self.error

    def check(self) -> str:
        """Wait for the end, check it, and return which it was."""
        expected = alone(self.number)[: self.count]
        assert self.handle._request.done.wait(60), self.kind
        try:
            completion = self.handle.result()
        except Exception as error:
            assert self.kind in ("raises", "processor"), (self.kind, error)
            assert self.error in (error, error.__cause__) and isinstance(error, type(as_error(self.error)) | Exception)
            if self.kind == "raises":
                assert [event.id for event in self.events if isinstance(event, Token)] == expected[: self.at + 1]
            return "error"
        assert self.kind not in ("raises", "processor")
        got = list(completion.token_ids)
        if completion.finish_reason == "cancelled":
            assert self.kind == "cancelled" and got == expected[: len(got)]
            return "cancelled"
        assert got == expected
        if self.kind == "callback":
            assert [event.id for event in self.events if isinstance(event, Token)] == expected
            assert self.events[-1] == completion
        elif self.kind != "cancelled":
            assert [token.id for token in self.handle] == expected
        return "right"


def resident() -> int:
    """Bytes of memory that the process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(llm: LLM, draw: random.Random, count: int, figures: Figures) -> Counter[str]:
    """Send `count` requests, AT_ONCE of them at a time, and a text to score now and then; return how they ended."""
    ends: Counter[str] = Counter()
    waiting: deque[Client] = deque()
    for index in range(count):
        waiting.append(Client(llm, draw))
        if index % 50 == 0:
            number = draw.randrange(len(PROMPTS))
            np.testing.assert_array_equal(llm.logits(PROMPTS[number]), scores(number))
        while len(waiting) > (AT_ONCE if index + 1 < count else 0):
            client = waiting.popleft()
            with figures.timed((client.kind, client.number, client.count)):
                ends[client.check()] += 1
    return ends


@pytest.mark.slow
def test_every_request_is_accounted_for_and_memory_stays(figures: Figures) -> None:
    count, draw, preempted = rounds(1000), draws(0), 0
    threads = threading.active_count()  # of other tests
    with make_llm(eos=(), rows=4, context=64, cache_tokens=96, span=4, windows=FULL) as llm:
        scheduler, preempt = llm.loop.scheduler, llm.loop.scheduler._preempt

        def watched(entry: object) -> None:
            nonlocal preempted
            preempted += 1
            preempt(entry)  # type: ignore[arg-type]

        scheduler._preempt = watched  # type: ignore[method-assign, assignment]
        llm.loop.session.steps = llm.loop.session.held = Forgetful()  # type: ignore[attr-defined]
        run(llm, draw, max(count // 4, 600), Figures())  # until the allocator has what it needs
        before = resident()
        ends = run(llm, draw, count, figures)
        after = resident()
    figures.refused = ends["error"]
    assert ends.total() == count and min(ends[name] for name in ("right", "error", "cancelled")) > count // 50
    assert preempted > count // 50
    assert after - before <= 0.02 * before, (before, after)
    check_tiles(llm)
    assert threading.active_count() < threads + 20


class Forgetful(list[object]):
    """A list that keeps nothing, in place of the toy's record of its steps."""

    def append(self, _: object) -> None:
        """Forget it."""
