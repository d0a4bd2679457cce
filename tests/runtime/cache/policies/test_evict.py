"""Tests of the policy `evict` in tables: tokens leave one by one, and requests get what a plain simulation gives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime import ArtifactError, RequestError, Sampling
from enginewright.runtime.cache.capacity import cache_bytes, copies_bytes, plan_tiles, request_bytes
from enginewright.runtime.cache.policy import open_policy, tokens_before_eviction
from enginewright.runtime.cache.policy_tables import PolicyTables
from enginewright.runtime.llm import LLM
from tests.support.runtime.evicting_model import CONTEXT, SIZE, check_pools, make_llm
from tests.support.runtime.policy_arrivals import ARRIVALS, A, B, check_empty, check_seen
from tests.support.runtime.simulated_eviction import simulated
from tests.support.runtime.simulated_requests import Arrival, evict_all, fits, serve, watch
from tests.support.runtime.toy_model import make_cache

FULL, MIXED = (0, 0, 0, 0), (0, 6, 0, 3)
BASE = {"budget": 12, "interval": 5, "window": 3, "kernel": 1}
CASES: dict[str, tuple[dict[str, Any], Sequence[int]]] = {
    "streaming": ({**BASE, "score": "streaming", "sinks": 2}, FULL),
    "random": ({**BASE, "score": "random"}, FULL),
    "rkv": ({**BASE, "score": "rkv", "kernel": 3}, FULL),
    "snapkv next to windows": ({**BASE, "score": "snapkv"}, MIXED),
    "snapkv-prompt": ({**BASE, "score": "snapkv-prompt", "kernel": 3}, FULL),
    "tova": ({**BASE, "score": "tova", "window": 1}, FULL),
    "h2o": ({**BASE, "score": "h2o"}, FULL),
    "lazy": ({**BASE, "score": "lazy"}, FULL),
    "trim": ({**BASE, "score": "trim"}, FULL),
    "trim in heads": ({**BASE, "score": "trim", "allocation": "ada"}, FULL),
    "duo": ({**BASE, "score": "streaming", "sinks": 2, "allocation": "duo", "whole": [[1], [], [0, 1], []]}, FULL),
    "duo next to windows": ({**BASE, "score": "rkv", "allocation": "duo", "whole": [[], [1]]}, MIXED),
    "duo in chunks": (
        {**BASE, "score": "streaming", "allocation": "duo", "whole": [[0], [0], [], []], "prefill": "chunk"},
        FULL,
    ),
    "pyramid": ({**BASE, "score": "random", "allocation": "pyramid"}, FULL),
    "ada": ({**BASE, "score": "snapkv", "allocation": "ada"}, FULL),
    "heads": ({**BASE, "score": "snapkv", "allocation": "reasonalloc"}, FULL),
    "heads by length": ({**BASE, "score": "rkv", "allocation": "reasonalloc", "score_norm": "times_len"}, FULL),
    "chunks": ({**BASE, "score": "rkv", "prefill": "chunk"}, FULL),
    "chunks of heads": ({**BASE, "score": "random", "allocation": "ada", "prefill": "chunk"}, FULL),
    "tiles": ({**BASE, "score": "rkv", "granularity": "tile", "budget": 4 * SIZE + 3}, FULL),
    "tiles next to windows": ({**BASE, "score": "random", "granularity": "tile"}, MIXED),
    "tiles of marks": ({**BASE, "score": "h2o", "granularity": "tile", "budget": 5 * SIZE}, FULL),
    "tiles by chunks": ({**BASE, "score": "snapkv", "granularity": "tile", "prefill": "chunk"}, FULL),
    "a tile an interval": ({**BASE, "score": "random", "interval": SIZE, "budget": 2 * SIZE}, FULL),
}
SIMULATED = {name: simulated(*case) for name, case in CASES.items()}


def _engine(case: str, **sizes: Any) -> LLM:
    llm = make_llm(SIMULATED[case][0], CASES[case][1], **sizes)
    watch(llm, lambda scheduler, _: check_pools(scheduler.tables))
    return llm


def _check(case: str, requests: Sequence[Any], arrivals: Sequence[Arrival]) -> None:
    check_seen(requests, arrivals, CASES[case][1], SIMULATED[case][1])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [1, 12, 13, 40])
def test_a_request_sees_what_the_policy_keeps(case: str, length: int) -> None:
    llm, arrivals = _engine(case), [Arrival(prompt=A[:length], new=40)]
    _check(case, serve(llm, arrivals), arrivals)
    check_empty(llm)


@pytest.mark.parametrize("case", CASES)
def test_a_scored_text_sees_what_a_generated_one_does(case: str) -> None:
    llm, arrivals = _engine(case), [Arrival(prompt=A[:60], score=True)]
    _check(case, serve(llm, arrivals), arrivals)
    check_empty(llm)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("large", ["budget", "interval"])
def test_within_the_budget_tokens_are_those_without_a_policy(case: str, large: str) -> None:
    options = {**SIMULATED[case][0], "budget": 2000}  # of which even the last layer of a pyramid gets enough
    if large == "interval":
        options = {**options, "interval": 96, "budget": 97 if options["score"] == "lazy" else 40}
    arrivals = [Arrival(prompt=A[:30] if large == "budget" else A[:4], new=30)]
    got = [serve(make_llm(each, CASES[case][1]), arrivals)[0].generated for each in (options, {})]
    assert got[0] == got[1]


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
    _check(case, serve(llm, arrivals), arrivals)
    check_empty(llm)


def test_pools_hold_a_budget_and_what_comes_until_the_next_eviction() -> None:
    llm = _engine("random", rows=2)
    tables = llm.loop.scheduler.tables
    assert isinstance(tables, PolicyTables)
    most = np.zeros(4, np.int64)
    watch(llm, lambda *_: np.maximum(most, [pool.count.sum() for pool in tables._pools], out=most))
    serve(llm, [Arrival(prompt=A[:9], new=80), Arrival(prompt=B[:4], new=80)])
    assert most.tolist() == [2 * 2 * 5, 2 * 5, 2 * 2 * 5, 2 * 2 * 5], "12 and 5 tokens take five tiles of four"
    check_empty(llm)


def test_a_prompt_takes_over_what_lies_before_the_queries_of_its_scores() -> None:
    case = "snapkv-prompt"  # due at the prompt's end, with a window of 3
    llm = _engine(case, span=8)
    arrivals = [Arrival(prompt=A[:34], new=20)]
    serve(llm, [Arrival(prompt=A[:34], new=3)])
    requests = serve(llm, arrivals)
    _check(case, requests, arrivals)
    assert requests[0].completion.reused_tokens == 24, "32 would leave two of the three queries"


@pytest.mark.parametrize("case", ["h2o", "lazy"])
def test_marks_are_of_one_request_so_nothing_is_shared(case: str) -> None:
    llm = _engine(case, span=8)
    serve(llm, [Arrival(prompt=A[:34], new=3)])
    assert serve(llm, [Arrival(prompt=A[:34], new=3)])[0].completion.reused_tokens == 0


@pytest.mark.parametrize("case", ["trim", "duo"])
def test_what_a_gate_says_is_of_the_tokens_so_tiles_are_shared(case: str) -> None:
    llm = _engine(case, span=8)
    arrivals = [Arrival(prompt=A[:34], new=20)]
    serve(llm, [Arrival(prompt=A[:34], new=3)])
    requests = serve(llm, arrivals)
    _check(case, requests, arrivals)
    assert requests[0].completion.reused_tokens == 32, "all but the last token"


def test_a_head_that_keeps_everything_counts_at_the_length_of_a_request() -> None:
    plain = make_cache(SIZE, FULL)
    policy = {"kind": "evict", **BASE, "score": "random", "allocation": "duo", "whole": [[1], [], [0, 1], []]}
    cache = dataclasses.replace(plain, policy=policy)
    assert request_bytes(cache, 80, prompt_tokens=4) == cache_bytes(cache, (20 + 5, 5, 20 + 20, 5 + 5), 1)
    assert copies_bytes(cache, CONTEXT) == cache_bytes(cache, (4, 3, 0, 7), 0), "no copies where no head evicts"
    chunks = dataclasses.replace(cache, policy={**policy, "prefill": "chunk"})
    sizes = {"rows": 2, "context": CONTEXT, "step_tokens": 8}
    tiles = plan_tiles(chunks, **sizes, cache_tokens=2 * CONTEXT)
    assert tiles == (2 * (24 + 5) + 4, 2 * 5 + 3, 2 * 48, 2 * 10 + 7)
    assert plan_tiles(chunks, **sizes, cache_tokens=CONTEXT) == (24 + 10 + 4, 10 + 3, 48, 20 + 7)


def test_a_model_whose_every_head_keeps_everything_never_evicts() -> None:
    options = {**BASE, "score": "streaming", "allocation": "duo", "whole": [[0, 1], [0], [0, 1], [0, 1]]}
    arrivals = [Arrival(prompt=A[:30], new=60)]
    got = [
        serve(make_llm({"kind": "evict", **each} if each else {}, FULL), arrivals)[0].generated
        for each in (options, {})
    ]
    assert got[0] == got[1]


def test_rows_leave_shared_tiles_whole_to_the_others() -> None:
    case = "heads"
    llm = _engine(case, span=8, rows=3)
    arrivals = [
        Arrival(prompt=A[:24], new=2),
        Arrival(prompt=A[:27], new=30, at=4),
        Arrival(prompt=A[:40], new=30, at=5),
    ]
    requests = serve(llm, arrivals)
    _check(case, requests, arrivals)
    assert [each.completion.reused_tokens for each in requests] == [0, 24, 24]
    evict_all(llm.loop.scheduler.tables)
    check_empty(llm)


def test_a_row_that_lacks_tiles_for_its_copies_puts_the_newest_one_off(monkeypatch: pytest.MonkeyPatch) -> None:
    case = "random"
    llm = _engine(case, rows=3, cache_tokens=60)
    scheduler, put_off = llm.loop.scheduler, []
    preempt = scheduler._preempt
    tables = scheduler.tables
    asked: list[int] = []
    free_for_copies = tables._free_for_copies

    def scarce(wanted: list[int]) -> bool:
        asked.append(len(asked))
        return (
            len(asked) % 3 != 0 and free_for_copies(wanted) if len(scheduler.running) > 1 else free_for_copies(wanted)
        )

    monkeypatch.setattr(tables, "_free_for_copies", scarce)
    monkeypatch.setattr(scheduler, "_preempt", lambda entry: (put_off.append(entry), preempt(entry)))
    arrivals = [Arrival(prompt=text[:20], new=40) for text in (A, B, A[5:])]
    _check(case, serve(llm, arrivals), arrivals)
    assert put_off
    check_empty(llm)


def test_a_failed_copy_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = _engine("random")
    tables = llm.loop.scheduler.tables
    assert isinstance(tables, PolicyTables)
    llm.loop.scheduler.submit(llm.loop.scheduler.decoder.start(llm._generation(A[:30], None)))
    free = np.array(tables.free_tiles)

    def fail(moves: Any) -> None:
        raise RuntimeError("no copies today")

    monkeypatch.setattr(llm.loop.session, "compact", fail)
    with pytest.raises(RuntimeError, match="no copies today"):
        while True:
            llm.loop.step()
    assert tables.held[0] == 30 and not any(pool.gone.any() for pool in tables._pools)
    check_pools(tables)
    assert (free - tables.free_tiles).tolist() == [16, 8, 16, 16], "eight tiles a head, as before the eviction"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "best"}, "score: got 'best', expected one of rkv, snapkv"),
        ({"allocation": "fair"}, "allocation: got 'fair', expected one of uniform, pyramid, ada, reasonalloc, duo"),
        ({"budget": 8}, "budget: got 8, expected 9 or more: the 8 newest tokens, 0 first ones and one more"),
        ({"budget": 12, "sinks": 4}, "budget: got 12, expected 13 or more"),
        ({"score": "lazy", "budget": 128}, "budget: got 128, expected 129 or more: the 128 newest tokens"),
        ({"score": "tova"}, "window: got 8, expected 1 with score tova"),
        ({"score": "tova", "window": 1, "allocation": "ada"}, "allocation: got ada with score tova"),
        ({"kernel": 4}, "kernel: got 4, expected an odd number"),
        ({"mix": 1.5}, "mix: got 1.5, expected 0 to 1"),
        ({"interval": 0}, "interval: got 0, expected a whole number from 1 to"),
        ({"budget": 10**30}, "budget: got 10{30}, expected a whole number from 1 to 2147483648"),
        ({"interval": 2**63}, "interval: got 9223372036854775808, expected a whole number from 1 to 2147483648"),
        ({"window": 2**31}, "budget: got 512, expected 2147483649 or more"),
        ({"sinks": -1}, "sinks: got -1, expected a whole number from 0 to 2147483648"),
        ({"kernel": -1}, "kernel: got -1, expected a whole number from 1 to"),
        ({"mix": math.nan}, "mix: got nan, expected 0 to 1"),
        ({"alpha": math.nan}, "alpha: got nan, expected above 0"),
        ({"whole": [[0]]}, "whole: got heads with allocation uniform, expected duo"),
        ({"allocation": "duo"}, "whole: got 0 layers, expected 4, those without a window"),
        ({"allocation": "duo", "whole": [[0], [1], [], []]}, "whole: got head 1, expected 0 to 0"),
        ({"allocation": "duo", "whole": [[-1], [], [], []]}, "whole: got head -1, expected 0 to 1"),
        ({"score": "tova", "window": 1, "allocation": "duo", "whole": [[0]]}, "allocation: got duo with score tova"),
        ({"granularity": "tile", "allocation": "ada"}, "allocation: got ada with granularity tile, expected uniform"),
        (
            {"granularity": "tile", "budget": 15},
            "budget: got 15 with granularity tile, expected 16 or more: the first tile",
        ),
        ({"demand": [1.0, 2.0]}, "demand: got one with allocation uniform"),
        ({"allocation": "reasonalloc", "demand": [1.0]}, "demand: got 1 layers, expected 4"),
        ({"allocation": "reasonalloc", "demand": [1.0] * 4}, "demand: got layers of 1 and 2 KV heads"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    cache = dataclasses.replace(make_cache(SIZE, FULL), policy={"kind": "evict", **options})
    with pytest.raises(ArtifactError, match=message):
        open_policy(cache)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_demand_that_is_no_number(value: float) -> None:
    plain = make_cache(SIZE, FULL)
    layers = tuple(dataclasses.replace(layer, kv_heads=2) for layer in plain.layers)
    policy = {"kind": "evict", "allocation": "reasonalloc", "demand": [1.0, value, 2.0, 3.0]}
    with pytest.raises(ArtifactError, match=r"policy 'evict'.*demand: got .*expected finite numbers from 0 up"):
        open_policy(dataclasses.replace(plain, layers=layers, policy=policy))


@pytest.mark.parametrize("options", [{"budget": 2**31}, {"budget": 2**31, "allocation": "ada"}, {"interval": 2**31}])
def test_budgets_beyond_the_context_take_no_more_tiles_than_it_does(options: dict[str, Any]) -> None:
    plain = make_cache(SIZE, FULL)
    cache = dataclasses.replace(plain, policy={"kind": "evict", **options})
    sizes = {"rows": 2, "context": CONTEXT, "step_tokens": 8, "cache_tokens": 2 * CONTEXT}
    tiles = np.array(plan_tiles(plain, **sizes))
    assert (plan_tiles(cache, **sizes) <= tiles * 3 // 2).all(), "copies of one row of two"
    assert tokens_before_eviction(cache) == (512 if "interval" in options else 2**31)


@pytest.mark.parametrize("case", ["random", "chunks", "snapkv next to windows"])
def test_a_small_cache_serves_a_long_answer_to_a_short_prompt(case: str) -> None:
    llm = _engine(case, rows=2, cache_tokens=32)  # eight tiles a head; budget and interval take five
    longest = llm.loop.scheduler.tables.longest_for
    assert longest(4) == longest(20) == 96, "the context"
    assert longest(80) == 96 if case == "chunks" else longest(80) < 80
    arrivals = [
        Arrival(prompt=A[:4], new=70),
        Arrival(prompt=B[:20], new=40, at=3),
        Arrival(prompt=A[:9], new=30, at=9),
    ]
    _check(case, serve(llm, arrivals), arrivals)
    check_empty(llm)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cache_tokens", [8, 20, 28])
def test_the_longest_request_runs_alone_and_a_longer_one_is_refused(case: str, cache_tokens: int) -> None:
    llm = _engine(case, rows=1, cache_tokens=cache_tokens)
    for prompt in (1, 12, 29):
        longest = llm.loop.scheduler.tables.longest_for(prompt)
        new = min(longest + 1, CONTEXT) - prompt
        if new > 0:
            arrivals = [Arrival(prompt=A[:prompt], new=new)]
            _check(case, serve(llm, arrivals), arrivals)
        if longest + 1 < CONTEXT:
            with pytest.raises(RequestError, match=f"the cache holds {longest} tokens"):
                llm._generation(A[:prompt], Sampling(max_tokens=max(new, 0) + 1))
    check_empty(llm)
