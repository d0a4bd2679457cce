"""Tests of tables that encode what has been chosen: requests get what a plain simulation gives, with what it has encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime import RequestError, Sampling
from enginewright.runtime.cache.record_tables import RecordTables
from enginewright.runtime.errors import ExtensionError
from enginewright.runtime.llm import LLM
from tests.support.runtime.evicting_model import CONTEXT, SIZE, check_pools, make_llm
from tests.support.runtime.policy_arrivals import ARRIVALS, A, B, check_empty, check_seen
from tests.support.runtime.simulated_eviction import simulated
from tests.support.runtime.simulated_requests import Arrival, fits, serve, watch

FULL, MIXED = (0, 0, 0, 0), (0, 6, 0, 3)
BASE = {"budget": 5 * SIZE, "interval": SIZE, "window": 1, "kernel": 1, "granularity": "record"}
CASES: dict[str, tuple[dict[str, Any], Sequence[int]]] = {
    "rkv": ({**BASE, "score": "rkv", "kernel": 3}, FULL),
    "random": ({**BASE, "score": "random", "budget": 7 * SIZE + 2}, FULL),
    "a window of two": ({**BASE, "score": "snapkv", "window": 2}, FULL),
    "next to windows": ({**BASE, "score": "random"}, MIXED),
    "least": ({**BASE, "score": "snapkv", "budget": 2 * SIZE}, FULL),
    "streaming": ({**BASE, "score": "streaming"}, FULL),
}
SIMULATED = {name: simulated(*case) for name, case in CASES.items()}


def _engine(case: str, **sizes: Any) -> LLM:
    llm = make_llm(SIMULATED[case][0], CASES[case][1], **sizes)
    assert isinstance(llm.loop.scheduler.tables, RecordTables)
    watch(llm, lambda scheduler, _: check_pools(scheduler.tables))
    return llm


def _check(case: str, requests: Sequence[Any], arrivals: Sequence[Arrival]) -> None:
    check_seen(requests, arrivals, CASES[case][1], SIMULATED[case][1])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [1, 4, 5, 40])
def test_a_request_sees_what_the_policy_keeps(case: str, length: int) -> None:
    llm, arrivals = _engine(case), [Arrival(prompt=A[:length], new=50)]
    _check(case, serve(llm, arrivals), arrivals)
    check_empty(llm)


@pytest.mark.parametrize("case", CASES)
def test_a_scored_text_sees_what_a_generated_one_does(case: str) -> None:
    llm, arrivals = _engine(case), [Arrival(prompt=A[:70], score=True)]
    _check(case, serve(llm, arrivals), arrivals)
    check_empty(llm)


@given(
    ARRIVALS,
    st.sampled_from(sorted(CASES)),
    st.integers(1, 3),
    st.integers(3, 20),
    st.integers(64, 240),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_random_arrivals_get_what_they_get_alone(
    arrivals: list[Arrival], case: str, rows: int, step_tokens: int, cache_tokens: int, shares: bool
) -> None:
    span = 2 * SIZE * (shares and not any(CASES[case][1]))
    llm = _engine(case, rows=rows, step_tokens=step_tokens, cache_tokens=cache_tokens, span=span)
    arrivals = [each for each in arrivals if fits(llm, each)]
    requests = serve(llm, arrivals)
    _check(case, requests, arrivals)
    check_empty(llm)


def test_tokens_are_encoded_once_and_pools_hold_no_more_than_the_budget() -> None:
    llm = _engine("rkv", rows=2)
    tables = llm.loop.scheduler.tables
    assert isinstance(tables, RecordTables)
    most = np.zeros(4, np.int64)
    watch(llm, lambda *_: np.maximum(most, [pool.count.max() for pool in tables._pools], out=most))
    serve(llm, [Arrival(prompt=A[:9], new=80), Arrival(prompt=B[:4], new=80)])
    assert most.tolist() == [3, 3, 3, 3], "of a budget of five tiles, without the first one and the newest token"
    check_empty(llm)


def test_a_row_that_lacks_tiles_puts_the_newest_one_off(monkeypatch: pytest.MonkeyPatch) -> None:
    case = "random"
    llm = _engine(case, rows=3)
    scheduler, put_off, asked = llm.loop.scheduler, list[Any](), list[int]()
    preempt, free = scheduler._preempt, scheduler.tables._free_for_copies  # type: ignore[attr-defined]

    def scarce(wanted: list[int]) -> bool:
        asked.append(len(asked))
        return bool((len(asked) % 3 != 0 or len(scheduler.running) == 1) and free(wanted))

    monkeypatch.setattr(scheduler.tables, "_free_for_copies", scarce)
    monkeypatch.setattr(scheduler, "_preempt", lambda entry: (put_off.append(entry), preempt(entry)))
    arrivals = [Arrival(prompt=text[:20], new=40) for text in (A, B, A[5:])]
    _check(case, serve(llm, arrivals), arrivals)
    assert len(put_off) > 3
    check_empty(llm)


@pytest.mark.parametrize("place", ["compact", "encode"])
def test_a_failed_eviction_frees_its_tiles(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = _engine("random")
    tables = llm.loop.scheduler.tables
    assert isinstance(tables, RecordTables)
    llm.loop.scheduler.submit(llm.loop.scheduler.decoder.start(llm._generation(A[:60], None)))

    def fail(*arguments: Any) -> None:
        raise RuntimeError("nothing today")

    while not tables._count.any():
        llm.loop.step()
    monkeypatch.setattr(llm.loop.session, place, fail)
    with pytest.raises(RuntimeError, match="nothing today"):
        while True:
            llm.loop.step()
    check_pools(tables)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (slice(1, 2), "keep: got a part of the first tile, expected all of it"),
        (slice(5, 6), "keep: got a part of an encoded tile, expected all of it or nothing"),
        (slice(0, 0), "keep: got 8 tokens that are not encoded, expected 4 at most"),
    ],
)
def test_what_cannot_be_followed_is_refused(gone: slice, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = _engine("streaming")
    tables = llm.loop.scheduler.tables
    assert isinstance(tables, RecordTables)
    llm.loop.scheduler.submit(llm.loop.scheduler.decoder.start(llm._generation(A[:60], None)))
    while not tables._count.any():
        llm.loop.step()
    monkeypatch.setattr(tables._policy, "newest", 1 if gone.stop else 9)

    def keep(rows: Sequence[Any], session: Any) -> list[np.ndarray]:
        mask = np.ones((*rows[0].stored.shape, int(rows[0].stored.max())), bool)
        mask[..., gone] = False
        return [mask]

    monkeypatch.setattr(tables._policy, "keep", keep)
    with pytest.raises(ExtensionError, match=message):
        llm.loop.step()


@pytest.mark.parametrize("case", ["rkv", "least"])
def test_the_longest_request_runs_alone_and_a_longer_one_is_refused(case: str) -> None:
    llm = _engine(case, rows=1, cache_tokens=4)
    longest = llm.loop.scheduler.tables.longest_for(5)
    arrivals = [Arrival(prompt=A[:5], new=min(longest + 1, CONTEXT) - 5)]
    _check(case, serve(llm, arrivals), arrivals)
    if longest + 1 < CONTEXT:
        with pytest.raises(RequestError, match=f"the cache holds {longest} tokens"):
            llm._generation(A[:5], Sampling(max_tokens=longest))
    check_empty(llm)
