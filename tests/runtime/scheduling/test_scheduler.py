"""Tests of in-flight batching: other requests never change the tokens that a request gets alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.llm import LLM
from enginewright.runtime.requests.request import Generation
from enginewright.runtime.requests.sampling import Sampling
from tests.support.runtime.simulated_requests import Kept, program_of
from tests.support.runtime.toy_model import greedy, make_llm, reference_logits
from tests.support.runtime.toy_session import VOCAB


def _alone(prompt: Sequence[int], sampling: Sampling) -> tuple[int, ...]:
    with make_llm(rows=1) as llm:
        return llm.generate([list(prompt)], sampling)[0].token_ids


def _request(llm: LLM, prompt: Sequence[int], sampling: Sampling) -> Generation:
    return llm._generation(list(prompt), sampling)


def _check_idle(llm: LLM, free: tuple[int, ...]) -> None:
    assert llm.loop.scheduler.is_idle
    state = llm.loop.scheduler.snapshot()
    assert state.free_tiles == free and state.waiting == state.running == 0 and state.rows_in_use == ()
    assert not state.held.any() and not state.known.any()


prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=24)
arrival = st.fixed_dictionaries(
    {
        "prompt": prompts,
        "at": st.integers(0, 12),
        "new": st.integers(1, 14),
        "seed": st.integers(0, 3),
        "temperature": st.sampled_from([0.0, 0.0, 1.0]),
        "cancel": st.one_of(st.none(), st.none(), st.integers(0, 20)),
        "score": st.sampled_from([False, False, True]),
    }
)


@given(
    st.lists(arrival, min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(4, 20),
    st.integers(40, 120),
    st.sampled_from([2, 4, 16]),
)
@settings(max_examples=100, deadline=None)
def test_random_arrivals_match_the_model_without_a_cache(
    arrivals: list[dict[str, Any]], rows: int, step_tokens: int, cache_tokens: int, tile_tokens: int
) -> None:
    llm = make_llm(
        rows=rows, step_tokens=max(step_tokens, rows), cache_tokens=cache_tokens, tile_tokens=tile_tokens, eos=()
    )
    scheduler, free = llm.loop.scheduler, llm.loop.scheduler.snapshot().free_tiles
    requests: list[Generation | Kept] = []
    for each in arrivals:
        sampling = Sampling(max_tokens=each["new"], seed=each["seed"], temperature=each["temperature"])
        request = Kept(each["prompt"]) if each["score"] else _request(llm, each["prompt"], sampling)
        requests.append(request)
    time = 0
    while time < 21 or not scheduler.is_idle:
        for request, each in zip(requests, arrivals, strict=True):
            if each["at"] == time:
                scheduler.submit(program_of(llm, request))
            if each["cancel"] == time and time > each["at"] and not request.done.is_set():
                scheduler.remove(request)
                request.cancel()
        if not scheduler.is_idle:
            llm.loop.step()
        time += 1
        assert time < 2000, "no progress"
    for request, each in zip(requests, arrivals, strict=True):
        _check_output(request, each)
    _check_idle(llm, free)


def _check_output(request: Generation | Kept, each: dict[str, Any]) -> None:
    assert request.done.is_set()
    if request.error is not None:
        assert isinstance(request, Kept) and each["cancel"] is not None
    elif isinstance(request, Kept):
        expected = [reference_logits(each["prompt"][: i + 1]) for i in range(len(each["prompt"]))]
        np.testing.assert_array_equal(request.logits, expected)
    else:
        assert request.completion is not None
        got = list(request.generated)
        assert len(got) == each["new"] or request.completion.finish_reason == "cancelled"
        if each["temperature"] == 0:
            assert got == greedy(each["prompt"], len(got))
        elif got:
            sampling = Sampling(max_tokens=len(got), seed=each["seed"], temperature=1.0, ignore_eos=True)
            assert tuple(got) == _alone(each["prompt"], sampling)


def test_a_step_mixes_decoding_rows_with_chunks_and_keeps_the_budget() -> None:
    llm = make_llm(rows=4, step_tokens=6, eos=())
    scheduler = llm.loop.scheduler
    first = _request(llm, [5], Sampling(max_tokens=20))
    scheduler.submit(program_of(llm, first))
    llm.loop.step()
    for length in (11, 3):
        scheduler.submit(program_of(llm, _request(llm, range(length), Sampling(max_tokens=2))))
    shares = []
    while not scheduler.is_idle:
        shares.append(np.diff(llm.loop.step()[0].packed.query_starts).tolist())
    assert shares[:3] == [[1, 5, 0, 0], [1, 5, 0, 0], [1, 1, 3, 0]]
    assert all(sum(share) <= 6 for share in shares)
    assert first.generated == greedy([5], 20)


def test_the_newest_request_is_preempted_and_its_stream_continues() -> None:
    sampling = Sampling(max_tokens=20, temperature=1.0, seed=7)
    llm = make_llm(rows=3, cache_tokens=48, windows=(0, 0, 0, 0), eos=())
    requests = [_request(llm, [i + 1] * 8, sampling) for i in range(3)]
    for request in requests:
        llm.loop.scheduler.submit(program_of(llm, request))
    most, waited = 0, set()
    while not llm.loop.scheduler.is_idle:
        llm.loop.step()
        most = max(most, len(llm.loop.scheduler.running))
        waited |= {requests.index(each.request) for each in llm.loop.scheduler.waiting if each.request.length > 8}
    assert most == 3 and waited == {1, 2}, "the oldest never waits"
    solo = make_llm(rows=1, windows=(0, 0, 0, 0), eos=())
    for i, request in enumerate(requests):
        assert tuple(request.generated) == solo.generate([[i + 1] * 8], sampling)[0].token_ids
    solo.close()


def test_preempted_requests_come_back_before_newer_ones() -> None:
    llm = make_llm(rows=3, cache_tokens=48, windows=(0, 0, 0, 0), eos=())
    requests = [_request(llm, [i + 1] * 8, Sampling(max_tokens=20)) for i in range(5)]
    for request in requests:
        llm.loop.scheduler.submit(program_of(llm, request))
    while not llm.loop.scheduler.is_idle:
        llm.loop.step()
        live = [requests.index(request) for request in llm.loop.scheduler.live()]
        assert live == sorted(live), "oldest first, running or waiting"
    assert [request.generated for request in requests] == [greedy([i + 1] * 8, 20, (0, 0, 0, 0)) for i in range(5)]


def test_a_row_without_ready_tokens_still_runs() -> None:
    llm = make_llm(rows=1, step_tokens=4, eos=())
    request = _request(llm, range(10), Sampling(max_tokens=1))
    llm.loop.scheduler.submit(program_of(llm, request))
    assert [len(llm.loop.step()[1].requests) for _ in range(3)] == [0, 0, 1]
    assert request.generated == greedy(range(10), 1)


@pytest.mark.parametrize("rows", [1, 3])
def test_first_come_first_served(rows: int) -> None:
    llm = make_llm(rows=rows, eos=())
    requests = [_request(llm, [i + 1], Sampling(max_tokens=3)) for i in range(7)]
    for request in requests:
        llm.loop.scheduler.submit(program_of(llm, request))
    ended: list[int] = []
    while not llm.loop.scheduler.is_idle:
        llm.loop.step()
        ended += [i for i, request in enumerate(requests) if request.done.is_set() and i not in ended]
    assert ended == list(range(7))


def test_lower_numbers_run_first_and_equals_in_order_of_arrival() -> None:
    llm = make_llm(rows=1, eos=())
    priorities = [0, 5, 0, -1, 5, -1]
    requests = [_request(llm, [i + 1], Sampling(max_tokens=3)) for i in range(6)]
    for request, priority in zip(requests, priorities, strict=True):
        request.priority = priority
        llm.loop.scheduler.submit(program_of(llm, request))
        if request is requests[0]:
            llm.loop.step()  # it runs, and stays
    ended: list[int] = []
    while not llm.loop.scheduler.is_idle:
        llm.loop.step()
        ended += [i for i, request in enumerate(requests) if request.done.is_set() and i not in ended]
    assert ended == [0, 3, 5, 2, 1, 4]
    assert [request.generated for request in requests] == [greedy([i + 1], 3) for i in range(6)]


def test_cache_use_counts_what_requests_hold() -> None:
    llm = make_llm(rows=2, eos=(), windows=(0, 0, 0, 0))
    scheduler = llm.loop.scheduler
    assert scheduler.snapshot().cache_use == 0
    request = _request(llm, range(32), Sampling(max_tokens=2))
    scheduler.submit(program_of(llm, request))
    llm.loop.step()
    assert scheduler.snapshot().cache_use == pytest.approx(16 / 128), "16 of the tokens of two rows of 64"
    while not scheduler.is_idle:
        llm.loop.step()
    assert scheduler.snapshot().cache_use == 0


def test_a_snapshot_counts_rows_and_tokens_and_stays_as_it_is() -> None:
    llm = make_llm(rows=3, step_tokens=8, eos=())
    scheduler = llm.loop.scheduler
    for length in (4, 12, 2, 5):
        scheduler.submit(program_of(llm, _request(llm, range(length), Sampling(max_tokens=2))))
    before = scheduler.snapshot()
    assert before.waiting == 4 and before.running == 0 and before.rows_in_use == ()
    llm.loop.step()
    after = scheduler.snapshot()
    assert after.waiting == 1 and after.running == 3 and after.rows_in_use == (0, 1, 2)
    assert after.known.tolist() == [5, 12, 2], "the first prompt is read, and its first token decided"
    assert after.held.tolist() == [4, 4, 0]
    assert not before.known.any() and not before.held.any()


def test_tokens_move_into_a_row_and_out_again() -> None:
    llm = make_llm(eos=())
    request, table = _request(llm, [3, 1, 4], Sampling(max_tokens=5)), np.full((2, 8), -1)
    request.move_to(1, table[1])
    assert request.row == 1 and table.tolist() == [[-1] * 8, [3, 1, 4, *[-1] * 5]]
    request.receive([1, 5], None)
    assert table[1].tolist() == [3, 1, 4, 1, 5, -1, -1, -1], "in the row, it writes to the table"
    request.move_out()
    table[:] = 0
    assert request.row is None and request.tokens.tolist() == [3, 1, 4, 1, 5]
