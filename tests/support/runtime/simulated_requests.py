"""Sends requests to a toy engine at given steps, and checks that each gets the same results as alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.decoding.program import Program
from enginewright.runtime.llm import LLM
from enginewright.runtime.requests.request import Generation, Scoring
from enginewright.runtime.requests.sampling import Sampling
from enginewright.runtime.scheduling.scheduler import Scheduler
from enginewright.runtime.scheduling.step import Step
from tests.support.runtime.toy_model import WINDOWS, Encoding, greedy, reference_logits
from tests.support.runtime.toy_session import VOCAB


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A request.

    prompt: the tokens to continue by `new` tokens, or to score.
    at, cancel: the steps at which the request arrives and is cancelled.
    """

    prompt: Sequence[int]
    at: int = 0
    new: int = 1
    score: bool = False
    cancel: int | None = None
    temperature: float = 0.0


class Kept(Scoring):
    """A scored text that keeps all its logits."""

    def __init__(self, prompt: Sequence[int]) -> None:
        super().__init__(np.array(prompt), self._keep)
        self.logits = np.full((len(prompt), VOCAB), np.nan, np.float32)

    def _keep(self, position: int, logits: np.ndarray) -> None:
        assert np.isnan(self.logits[position : position + len(logits)]).all(), "handed over once"
        self.logits[position : position + len(logits)] = logits


def program_of(llm: LLM, request: Generation | Scoring) -> Program:
    """The program that the LLM would submit for the request."""
    decoder = llm.loop.scheduler.decoder
    return decoder.start(request) if isinstance(request, Generation) else decoder.score(request)


def fits(llm: LLM, arrival: Arrival) -> bool:
    """Whether the engine takes a request, for it fits into the cache when nothing else does."""
    longest = llm.loop.scheduler.tables.longest_for(0 if arrival.score else len(arrival.prompt))
    return len(arrival.prompt) + (0 if arrival.score else arrival.new - 1) <= longest


def serve(llm: LLM, arrivals: Sequence[Arrival]) -> list[Generation | Kept]:
    """Run until all requests have ended, and return them."""
    scheduler = llm.loop.scheduler
    requests: list[Generation | Kept] = [
        Kept(each.prompt)
        if each.score
        else llm._generation(
            list(each.prompt), Sampling(max_tokens=each.new, temperature=each.temperature, seed=seed, ignore_eos=True)
        )
        for seed, each in enumerate(arrivals)
    ]
    last = max((max(each.at, each.cancel or 0) for each in arrivals), default=0)
    time = 0
    while time <= last or not scheduler.is_idle:
        for request, each in zip(requests, arrivals, strict=True):
            if each.at == time:
                scheduler.submit(program_of(llm, request))
            if each.cancel == time > each.at and not request.done.is_set():
                scheduler.remove(request)
                request.cancel()
        if not scheduler.is_idle:
            llm.loop.step()
        time += 1
        assert time < 3000, "no progress"
    return requests


def watch(llm: LLM, look: Callable[[Scheduler, Step], None]) -> None:
    """Call `look` with each step before it runs."""
    scheduler, schedule = llm.loop.scheduler, llm.loop.scheduler.schedule

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
    """Check that every request got the results that it gets without a cache, as far as it came."""
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
    state, tables = llm.loop.scheduler.snapshot(), llm.loop.scheduler.tables
    assert llm.loop.scheduler.is_idle and state.rows_in_use == ()
    assert not state.known.any() and not state.held.any()
    assert not tables.kv_lens.any() and not tables.encoded_lens.any() and not tables.sink_copies
    evict_all(tables)
    for group in tables._groups:
        assert group.free_count == len(group._free)
        assert sorted(group._free.tolist()) == list(range(len(group._free)))


def check_ownership(tables: TileTables) -> None:
    """Check that every tile is free, or belongs to one prefix or one row, and that prefixes know the rows that use them."""
    prefixes = tables._prefixes
    for index, group in enumerate(tables._groups):
        owned = [group._free[: group.free_count], *(p.tiles[index].ravel() for p in prefixes._known.values())]
        for row in range(len(tables.held)):
            first = max(int(group.first[row]), int(group._shared[row]))
            owned.append(tables.tile_table[group._layers[0], row, : group.heads, first : int(group.end[row])].ravel())
        assert sorted(np.concatenate(owned).tolist()) == list(range(len(group._free)))
        assert prefixes.idle_tiles[index] == sum(p.tiles[index].size for p in prefixes._idle.values())
    for key, prefix in prefixes._known.items():
        assert prefix.key == key and prefix.users == sum(prefix in used for used in tables._used)
        assert (key in prefixes._idle) == (prefix.users == 0)
        assert all(prefixes._sink_of[row] is prefix for row in prefix.sink_rows)
    for row, used in enumerate(tables._used):
        assert all(prefixes._known[prefix.key] is prefix for prefix in used)
        assert not used or not len(tables._encoding) or row in used[0].sink_rows


def evict_all(tables: TileTables) -> None:
    """Forget every prefix that no row uses."""
    while (tiles := tables._prefixes.evict()) is not None:
        tables._take_back(tiles)
