"""Requests that reach a toy engine at given steps, and what each must get whatever else runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from toy_model import WINDOWS, Encoding, greedy, reference_logits
from toy_session import VOCAB

from enginewright.runtime.llm import LLM
from enginewright.runtime.request import Generation, Scoring
from enginewright.runtime.sampling import Sampling
from enginewright.runtime.scheduler import Scheduler, Step
from enginewright.runtime.tiles import TileTables


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """prompt: to continue greedily by `new` tokens, or to score. at, cancel: the steps when it comes and is cancelled."""

    prompt: Sequence[int]
    at: int = 0
    new: int = 1
    score: bool = False
    cancel: int | None = None


class Kept(Scoring):
    """Keeps its logits whole."""

    def __init__(self, prompt: Sequence[int]) -> None:
        super().__init__(np.array(prompt), self._keep)
        self.logits = np.full((len(prompt), VOCAB), np.nan, np.float32)

    def _keep(self, position: int, logits: np.ndarray) -> None:
        assert np.isnan(self.logits[position : position + len(logits)]).all(), "handed over once"
        self.logits[position : position + len(logits)] = logits


def serve(llm: LLM, arrivals: Sequence[Arrival]) -> list[Generation | Kept]:
    """Run until all requests have ended, and return them."""
    scheduler = llm.engine.scheduler
    requests: list[Generation | Kept] = [
        Kept(each.prompt) if each.score else llm._generation(list(each.prompt), Sampling(max_tokens=each.new))
        for each in arrivals
    ]
    last = max((max(each.at, each.cancel or 0) for each in arrivals), default=0)
    time = 0
    while time <= last or not scheduler.is_idle:
        for request, each in zip(requests, arrivals, strict=True):
            if each.at == time:
                scheduler.submit(request)
            if each.cancel == time > each.at and not request.done.is_set():
                scheduler.remove(request)
                request.cancel()
        if not scheduler.is_idle:
            llm.engine.step()
        time += 1
        assert time < 3000, "no progress"
    return requests


def watch(llm: LLM, look: Callable[[Scheduler, Step], None]) -> None:
    """Call `look` with each step before it runs."""
    scheduler, schedule = llm.engine.scheduler, llm.engine.scheduler.schedule

    def watched() -> Step:
        step = schedule()
        look(scheduler, step)
        return step

    scheduler.schedule = watched  # type: ignore[method-assign]


def check_outputs(
    requests: Sequence[Generation | Kept],
    arrivals: Sequence[Arrival],
    windows: Sequence[int] = WINDOWS,
    encoding: Encoding | None = None,
) -> None:
    """Every request got what it gets without a cache, as far as it came."""
    for request, each in zip(requests, arrivals, strict=True):
        assert request.done.is_set()
        if isinstance(request, Generation):
            assert request.completion is not None
            assert len(request.generated) == each.new or request.completion.finish_reason == "cancelled"
            assert request.generated == greedy(each.prompt, len(request.generated), windows, encoding)
        elif request.error is not None:
            assert each.cancel is not None
        else:
            expected = [reference_logits(each.prompt[: i + 1], windows, encoding) for i in range(len(each.prompt))]
            np.testing.assert_array_equal(request.logits, expected)


def check_tiles(llm: LLM) -> None:
    """Nothing runs, and once the prefixes are gone every tile is free, once."""
    scheduler, tables = llm.engine.scheduler, llm.engine.scheduler._tables
    assert scheduler.is_idle and scheduler._slots == [None] * llm.capacity.rows
    assert not scheduler._count.any() and not tables.held.any()
    assert not tables.kv_lens.any() and not tables.encoded_lens.any() and not tables.sink_copies
    evict_all(tables)
    for group in tables._groups:
        assert group.free_count == len(group._free)
        assert sorted(group._free.tolist()) == list(range(len(group._free)))


def evict_all(tables: TileTables) -> None:
    """Forget every prefix that no row uses."""
    while (tiles := tables._prefixes.evict()) is not None:
        tables._take_back(tiles)
