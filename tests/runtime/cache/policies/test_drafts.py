"""Tests of drafts under the policy `evict`: a request gets the tokens that it gets without any, and no step goes past an eviction."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.cache.head_pool import HeadPool
from enginewright.runtime.cache.policy_tables import PolicyTables
from enginewright.runtime.llm import LLM
from enginewright.runtime.scheduling.scheduler import Scheduler
from enginewright.runtime.scheduling.step import Step
from tests.support.runtime.evicting_model import SIZE, WIDTH, check_pools, greedy, make_llm
from tests.support.runtime.simulated_eviction import simulated
from tests.support.runtime.simulated_requests import Arrival, check_tiles, fits, serve, watch
from tests.support.runtime.toy_session import VOCAB

FULL = (0, 0, 0, 0)
BASE = {"budget": 12, "interval": 5, "window": 3, "kernel": 1}
CASES: dict[str, dict[str, Any]] = {
    "random": {**BASE, "score": "random"},
    "rkv": {**BASE, "score": "rkv", "kernel": 3},
    "every token": {**BASE, "score": "random", "interval": 1},
    "a tile an interval": {**BASE, "score": "random", "interval": SIZE, "budget": 2 * SIZE, "prefill": "chunk"},
    "heads": {**BASE, "score": "snapkv", "allocation": "reasonalloc"},
    "chunks": {**BASE, "score": "rkv", "prefill": "chunk"},
}
SIMULATED = {name: simulated(options, FULL) for name, options in CASES.items()}
A, B = (np.random.default_rng(i).integers(0, VOCAB, 80).tolist() for i in range(2))


@cache
def _wanted(case: str, prompt: tuple[int, ...]) -> list[int]:
    """The most probable tokens after a prompt, a few more than any test asks for."""
    return greedy(prompt, 48, FULL, SIMULATED[case][1])


def _engine(case: str, right: float, **sizes: Any) -> LLM:
    """An engine whose guesses are each right with that probability, and which never goes past a place where a row is due."""

    def guess(tokens: list[int], prompt: int) -> list[int]:
        rng, done = np.random.default_rng([len(tokens), sum(tokens)]), len(tokens) - prompt
        own = _wanted(case, tuple(tokens[:prompt]))[done + 1 : done + WIDTH]
        return [token if rng.random() < right else int(rng.integers(VOCAB)) for token in own]

    llm = make_llm(SIMULATED[case][0], FULL, guess=guess, **sizes)

    def look(scheduler: Scheduler, step: Step) -> None:
        tables = scheduler.tables
        assert isinstance(tables, PolicyTables)
        check_pools(tables)
        for row, count in enumerate(np.diff(step.packed.query_starts).tolist()):
            assert not count or tables.held[row] + count <= tables._due[row]

    watch(llm, look)
    return llm


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("right", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("length", [1, 12, 40])
def test_tokens_are_those_without_drafts(case: str, right: float, length: int) -> None:
    llm, arrivals = _engine(case, right), [Arrival(prompt=A[:length], new=40)]
    (request,) = serve(llm, arrivals)
    assert request.generated == _wanted(case, tuple(A[:length]))[:40]
    check_tiles(llm)


@pytest.mark.parametrize("case", CASES)
def test_no_tile_is_taken_for_drafts_after_an_eviction(case: str) -> None:
    llm = _engine(case, 0.7, rows=1)
    tables = llm.loop.scheduler.tables
    assert isinstance(tables, PolicyTables)
    watch(llm, lambda *_: [_check_room(pool) for pool in tables._pools])
    (request,) = serve(llm, [Arrival(prompt=A[:4], new=44)])
    assert request.generated == _wanted(case, tuple(A[:4]))[:44]


def _check_room(pool: HeadPool) -> None:
    """Check that the row leaves the tiles free that its next eviction may need for copies."""
    assert pool.free_count >= pool.spare


@given(
    st.lists(
        st.builds(
            Arrival,
            prompt=st.builds(lambda text, n: text[:n], st.sampled_from([A, B, A[:20] + B]), st.integers(1, 50)),
            at=st.integers(0, 12),
            new=st.integers(1, 30),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(sorted(CASES)),
    st.integers(1, 3),
    st.integers(40, 240),
    st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_random_arrivals_get_what_they_get_without_drafts(
    arrivals: list[Arrival], case: str, rows: int, cache_tokens: int, shares: bool
) -> None:
    llm = _engine(case, 0.8, rows=rows, cache_tokens=cache_tokens, span=2 * SIZE * shares)
    arrivals = [each for each in arrivals if fits(llm, each)]
    for request, each in zip(serve(llm, arrivals), arrivals, strict=True):
        assert request.generated == _wanted(case, tuple(each.prompt))[: each.new]
    check_tiles(llm)
