"""Tests of the scheduler with programs of another kind: any order of positions, inputs of their own, whole feeds or none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.cache.capacity import Capacity, plan_tiles
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.decoding.program import Feed, Program, Room, Taken
from enginewright.runtime.errors import ExtensionError, RequestError
from enginewright.runtime.requests.request import Generation, Request, Scoring
from enginewright.runtime.requests.resolved_sampling import ResolvedSampling
from enginewright.runtime.requests.sampling import Sampling
from enginewright.runtime.scheduling.scheduler import Scheduler
from tests.support.runtime.simulated_requests import check_tiles
from tests.support.runtime.toy_model import FULL, make_cache, make_llm
from tests.support.runtime.toy_session import VOCAB

ANSWER = 4


class Canvas:
    """A program in the manner of diffusion: feeds all of its canvas at once, backwards, until each place has been filled."""

    shares_prefix = False

    def __init__(self, request: Generation) -> None:
        self.request = request
        self.forwards = 0
        self.left = 0

    def is_steady(self, held: int) -> bool:
        """Say that the feed must not displace those of other rows."""
        return False

    def feed(self, held: int, room: Room) -> Feed | None:
        """Return the whole canvas, if there is room for it."""
        size = self.request.prompt_tokens + ANSWER
        if room.tokens < size:
            return None
        tokens = np.concatenate([self.request.tokens[: self.request.prompt_tokens], np.full(ANSWER, 99)])[::-1]
        places = np.arange(size)[::-1]
        return Feed(tokens, places, np.arange(ANSWER), reads_logits=False, extent=size, ports={"places": places})

    def take(self, feed: Feed, outputs: Outputs) -> Taken:
        """Keep nothing in the cache, and be done after the second forward."""
        assert len(outputs.greedy) == ANSWER
        self.forwards += 1
        return Taken(0, outputs.greedy.tolist() if self.forwards == 2 else [])

    def leave(self) -> None:
        """Count how often the row was given up."""
        self.left += 1


class CanvasKind:
    """The kind, opened."""

    def start(self, request: Generation) -> Program:
        """Return the program of a new request."""
        return Canvas(request)

    def score(self, request: Scoring) -> Program:
        """Refuse."""
        raise RequestError("canvas: no next token")

    def warn_of(self, request: Generation) -> str | None:
        """Nothing is slow."""
        return None

    def steady(self, programs: Sequence[Program], rows: int) -> None:
        """There is no batch."""


def scheduler_of(rows: int, step_tokens: int) -> Scheduler:
    """A scheduler over tiles of 4 tokens."""
    cache = make_cache(4, FULL)
    tiles = plan_tiles(cache, rows=rows, context=32, step_tokens=step_tokens, cache_tokens=32 * rows)
    capacity = Capacity(
        rows=rows, context=32, step_tokens=step_tokens, logit_rows=rows * ANSWER, tiles=tiles, width=ANSWER
    )
    return Scheduler(TileTables(cache, capacity), capacity, CanvasKind())


def request_of(prompt: list[int]) -> Generation:
    """A request for a canvas of ANSWER tokens."""
    sampling = ResolvedSampling(max_tokens=ANSWER)
    return Generation(np.array(prompt), sampling, vocab=VOCAB, limit=ANSWER, ends=frozenset(), text=None)


def run(scheduler: Scheduler) -> list[list[int]]:
    """Run one step with made-up outputs; return the counts of tokens of each row, and what the requests got."""
    step = scheduler.schedule()
    rows = len(step.packed.sample_rows)
    emission = step.takes.take(Outputs(np.zeros((rows, 9), np.float32), np.arange(rows) + 10))
    scheduler.commit(step, emission)
    for request, tokens in zip(emission.requests, emission.tokens, strict=True):
        if request.receive(tokens):
            scheduler.remove(request)
    return [np.diff(step.packed.query_starts).tolist(), *emission.tokens]


def test_positions_come_in_any_order_with_inputs_of_the_kinds_own() -> None:
    scheduler = scheduler_of(2, 24)
    for prompt in ([5, 6], [7, 8, 9]):
        scheduler.submit(Canvas(request_of(prompt)))
    step = scheduler.schedule().packed
    assert step.input_ids.tolist() == [99, 99, 99, 99, 6, 5, 99, 99, 99, 99, 9, 8, 7]
    assert step.position_ids.tolist() == [5, 4, 3, 2, 1, 0, 6, 5, 4, 3, 2, 1, 0]
    assert step.conditions["places"].tolist() == step.position_ids.tolist()
    assert step.sample_rows.tolist() == [0, 1, 2, 3, 6, 7, 8, 9] and not step.reads_logits


def test_nothing_is_kept_until_the_kind_says_so_and_a_feed_is_whole_or_waits() -> None:
    scheduler = scheduler_of(2, 8)
    first, second = request_of([5, 6]), request_of([7, 8, 9])
    for request in (first, second):
        scheduler.submit(Canvas(request))
    assert run(scheduler) == [[6, 0]], "the second canvas does not fit beside the first, and is not cut"
    assert not scheduler.tables.held.any() and not scheduler.tables.kv_lens.any()
    assert run(scheduler) == [[6, 0], [10, 11, 12, 13]]
    assert run(scheduler) == [[0, 7]] and run(scheduler) == [[0, 7], [10, 11, 12, 13]]
    assert scheduler.is_idle and first.completion is not None and second.completion is not None
    assert scheduler.tables.use == 0


def test_a_program_that_is_preempted_is_told() -> None:
    scheduler = scheduler_of(2, 24)
    scheduler.submit(Canvas(request_of([5, 6])))
    scheduler.schedule()
    program = scheduler.running[0].program
    scheduler._preempt(scheduler.running[0])
    assert isinstance(program, Canvas) and program.left == 1
    assert scheduler.waiting[0].program is program and program.request.row is None


def test_a_request_that_is_scored_alone_fails_alone_when_its_owner_raises() -> None:
    def take(position: int, logits: object) -> None:
        raise KeyError("the owner's own")

    llm = make_llm(eos=())
    other = llm.submit([3, 4], Sampling(max_tokens=5))
    with pytest.raises(KeyError, match="the owner's own"):
        llm.score([[1, 2, 3]], [take])
    assert len(other.result().token_ids) == 5
    llm.close()
    check_tiles(llm)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_is_no_exception_ends_all_requests_too() -> None:
    """Such as SystemExit in a callback, or a panic of a native library: no caller may wait for ever."""

    def leave(_: object) -> None:
        raise SystemExit(3)

    llm = make_llm(eos=())
    llm.loop.observer = leave
    request: Request = llm.submit([1])._request
    assert request.done.wait(10) and "the step loop has ended: SystemExit(3)" in str(request.error)
    assert isinstance(request.error, RequestError)
    with pytest.raises(RequestError, match=r"LLM: ended by SystemExit\(3\), so it takes no more requests"):
        llm.generate([3])
    llm.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_outside_of_a_step_ends_all_requests_and_later_ones_are_refused() -> None:
    llm = make_llm(eos=(), rows=1)
    llm.loop.scheduler.submit = None  # type: ignore[method-assign, assignment]
    request: Request = llm.submit([1])._request
    assert request.done.wait(10) and isinstance(request.error, RequestError)
    assert isinstance(request.error.__cause__, TypeError)
    with pytest.raises(RequestError, match="LLM: ended by TypeError"):
        llm.generate([3])


def test_a_steady_row_that_feeds_more_than_the_width_is_refused_by_name() -> None:
    class TooMuch(Canvas):
        def is_steady(self, held: int) -> bool:
            return True

    scheduler = scheduler_of(1, 24)
    scheduler.submit(TooMuch(request_of([5, 6])))
    with pytest.raises(ExtensionError, match=r"TooMuch: got a feed of 6 tokens from a steady row, expected at most 4"):
        scheduler.schedule()
