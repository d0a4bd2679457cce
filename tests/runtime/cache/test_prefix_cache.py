"""Tests that prompts with the same beginning share tiles: less is computed, results are equal, every tile is freed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.cache.capacity import Capacity, plan_capacity, plan_tiles
from enginewright.runtime.cache.prefix_cache import span_keys
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.llm import LLM
from enginewright.runtime.requests.request import Generation
from enginewright.runtime.requests.sampling import Sampling
from enginewright.runtime.scheduling.scheduler import Scheduler
from enginewright.runtime.scheduling.step import Step
from tests.support.runtime.simulated_requests import (
    Arrival,
    Kept,
    check_outputs,
    check_ownership,
    check_tiles,
    serve,
    watch,
)
from tests.support.runtime.toy_model import FULL, WINDOWS, Encoding, make_cache, make_llm
from tests.support.runtime.toy_session import VOCAB

SPAN = 8
CASES = {
    "plain": None,
    "encoded": Encoding(chunk=SPAN),
    "some encoded": Encoding((True, False, True, False), chunk=SPAN),
    "a span is a tile": Encoding(tile_tokens=SPAN, chunk=SPAN),
}
ENCODED = [name for name, encoding in CASES.items() if encoding]
A, B, C, D = (np.random.default_rng(i).integers(0, VOCAB, 40).tolist() for i in range(4))


def _engine(case: str, *, rows: int = 3, cache_tokens: int | None = None) -> LLM:
    llm = make_llm(rows=rows, cache_tokens=cache_tokens, windows=FULL, encoding=CASES[case], span=SPAN, eos=())
    watch(llm, lambda scheduler, _: check_ownership(scheduler.tables))
    return llm


def _serve(llm: LLM, case: str, *arrivals: Arrival) -> list[int]:
    """Serve and check `arrivals`, and return how many tokens each reused."""
    requests = serve(llm, arrivals)
    check_outputs(requests, arrivals, FULL, CASES[case])
    return [_reused(request) for request in requests]


def _reused(request: Generation | Kept) -> int:
    return 0 if isinstance(request, Kept) or not request.completion else request.completion.reused_tokens


def _computed(llm: LLM) -> int:
    return sum(len(step.input_ids) for step in llm.loop.session.steps)


def _copies(llm: LLM) -> list[tuple[tuple[int, int], ...]]:
    return [step.sink_copies for step in llm.loop.session.steps if step.sink_copies]


def _known(llm: LLM, prompt: list[int]) -> list[bool]:
    known = llm.loop.scheduler.tables._prefixes._known
    return [key in known for key in span_keys(np.array(prompt), SPAN)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 24, 31, 40])
def test_an_identical_prompt_computes_its_last_span_alone(case: str, length: int) -> None:
    llm, prompt = _engine(case), A[:length]
    assert _serve(llm, case, Arrival(prompt=prompt, new=5)) == [0]
    cold = _computed(llm)
    reused = (length - 1) // SPAN * SPAN
    assert _serve(llm, case, Arrival(prompt=prompt, new=5)) == [reused]
    assert _computed(llm) == 2 * cold - reused
    check_tiles(llm)


@pytest.mark.parametrize("case", CASES)
def test_prompts_share_what_they_begin_with(case: str) -> None:
    llm = _engine(case)
    assert _serve(llm, case, Arrival(prompt=A[:33])) == [0]
    for prompt, reused in (
        (A[:20] + B[:20], 16),
        (A[:24] + B[:3], 24),
        ([A[0] + 1, *A[1:]], 0),
        (A[:8], 0),
        (A, 32),
        (A[8:], 0),
        (A[:20] + B[:19], 32),
    ):
        assert _serve(llm, case, Arrival(prompt=prompt, new=3)) == [reused]
    check_tiles(llm)


@pytest.mark.parametrize("case", CASES)
def test_what_a_running_request_has_computed_is_shared_at_once(case: str) -> None:
    """The first request ends while the second continues; the third still finds the first one's tiles."""
    llm = _engine(case, rows=2)
    reused = _serve(
        llm,
        case,
        Arrival(prompt=A[:17], new=9),
        Arrival(prompt=A[:17] + B[:4], at=4, new=30),
        Arrival(prompt=A[:21], at=14, new=9),
    )
    assert reused == [0, 16, 16]
    check_tiles(llm)


@pytest.mark.parametrize("case", CASES)
def test_of_the_same_prompt_computed_twice_one_copy_is_kept(case: str) -> None:
    llm = _engine(case)
    assert _serve(llm, case, *(Arrival(prompt=A[:25], new=n) for n in (9, 2, 5))) == [0, 0, 0]
    tables = llm.loop.scheduler.tables
    kept = [len(group._free) - group.free_count for group in tables._groups]
    assert kept == [(24 // tables.tile_tokens - group.base) * group.heads for group in tables._groups]
    assert _serve(llm, case, Arrival(prompt=A[:25], new=9)) == [24]
    check_tiles(llm)


@pytest.mark.parametrize("case", CASES)
def test_a_request_that_computes_what_another_has_published_meanwhile_goes_on(case: str) -> None:
    """Both begin cold; the second is longer, and the first is cancelled before it is done."""
    llm = _engine(case)
    reused = _serve(llm, case, Arrival(prompt=A[:17], cancel=1), Arrival(prompt=A[:33], new=3), Arrival(prompt=A, at=9))
    assert reused[:2] == [0, 0] and reused[2] in (8, 16, 32)
    check_tiles(llm)


@pytest.mark.parametrize(("case", "cache_tokens"), list(zip(CASES, (68, 68, 68, 56), strict=True)))
def test_the_longest_unused_is_evicted_first_from_its_end(case: str, cache_tokens: int) -> None:
    llm = _engine(case, cache_tokens=cache_tokens)
    for prompt in (A[:33], B[:33], B[:33]):
        _serve(llm, case, Arrival(prompt=prompt))
    assert _known(llm, A[:33]) == _known(llm, B[:33]) == [True] * 4
    _serve(llm, case, Arrival(prompt=C[:25]))
    left = _known(llm, A[:33])
    assert left[0] and not left[3] and left == sorted(left, reverse=True), "children go before what they follow"
    assert _known(llm, B[:33]) == [True] * 4 and _known(llm, C[:25]) == [True] * 3
    assert _serve(llm, case, Arrival(prompt=A[:33])) == [sum(left) * SPAN]
    check_tiles(llm)


@pytest.mark.parametrize("case", CASES)
def test_preempted_requests_find_what_they_had_computed(case: str) -> None:
    llm = _engine(case, cache_tokens=72)
    returned: set[int] = set()

    def look(scheduler: Scheduler, _: Step) -> None:
        held = [(entry.request, int(scheduler.tables.held[entry.row])) for entry in scheduler.running]
        returned.update(tokens for request, tokens in held if tokens < 17 < request.length)

    watch(llm, look)
    arrivals = [Arrival(prompt=prompt[:17], new=26) for prompt in (A, B, C)]
    assert _serve(llm, case, *arrivals) == [0, 0, 0], "what a request finds of its own is not counted"
    assert 16 in returned
    check_tiles(llm)


@pytest.mark.parametrize(("case", "cache_tokens"), list(zip(CASES, (64, 64, 64, 56), strict=True)))
def test_a_request_that_waits_for_tiles_takes_nothing(case: str, cache_tokens: int) -> None:
    """The only free row holds what A needs; the one that waits for it gives up."""
    llm = _engine(case, rows=2, cache_tokens=cache_tokens)
    _serve(llm, case, Arrival(prompt=A[:17]))
    reused = _serve(
        llm,
        case,
        Arrival(prompt=B[:24], new=24),
        Arrival(prompt=C[:40] + D[:20], at=1, new=1, cancel=9),
        Arrival(prompt=A[:17], at=9),
    )
    assert reused == [0, 0, 16]
    check_tiles(llm)


@pytest.mark.parametrize("case", ENCODED)
def test_a_free_row_that_holds_the_first_tile_is_taken_again(case: str) -> None:
    llm = _engine(case, rows=3)
    _serve(llm, case, Arrival(prompt=B[:9], new=9), Arrival(prompt=A[:25]))
    assert _serve(llm, case, Arrival(prompt=A[:25])) == [24]
    assert np.diff(llm.loop.session.steps[-1].query_starts).tolist() == [0, 1, 0], "in the same row"
    assert not _copies(llm)
    check_tiles(llm)


@pytest.mark.parametrize("case", ENCODED)
def test_the_first_tile_is_copied_from_a_row_that_runs(case: str) -> None:
    llm = _engine(case, rows=3)
    others = [Arrival(prompt=A[:25], at=5, new=n) for n in (2, 9)]
    assert _serve(llm, case, Arrival(prompt=A[:25], new=20), *others) == [0, 24, 24]
    assert _copies(llm) == [((0, 1), (0, 2))]
    check_tiles(llm)


@pytest.mark.parametrize("case", ENCODED)
def test_a_prefix_is_lost_with_its_first_tile_and_comes_back(case: str) -> None:
    """The prefix's later spans are still there when its first one has been computed again."""
    llm = _engine(case, rows=1)
    assert [_serve(llm, case, Arrival(prompt=p[:25]))[0] for p in (A, A, B)] == [0, 24, 0]
    assert _known(llm, A[:25]) == [False, True, True]
    assert [_serve(llm, case, Arrival(prompt=p[:25]))[0] for p in (A, A)] == [0, 24]
    check_tiles(llm)


@pytest.mark.parametrize("case", ENCODED)
def test_a_new_prompt_takes_the_row_that_was_unused_longest(case: str) -> None:
    llm = _engine(case, rows=2)
    assert [_serve(llm, case, Arrival(prompt=p[:17]))[0] for p in (A, B, A, C, D, C)] == [0, 0, 16, 0, 0, 16]
    check_tiles(llm)


@pytest.mark.parametrize("case", ENCODED)
def test_a_row_is_free_to_take_while_another_holds_the_same_tile(case: str) -> None:
    llm = _engine(case, rows=3)
    _serve(llm, case, Arrival(prompt=A[:17], new=9), Arrival(prompt=A[:17], at=4), Arrival(prompt=B[:17], at=4))
    assert [_serve(llm, case, Arrival(prompt=p[:17]))[0] for p in (C, A, B)] == [0, 16, 16]
    check_tiles(llm)


def test_without_spans_nothing_is_reused() -> None:
    llm = make_llm(windows=FULL, eos=())
    assert [llm.generate(A, Sampling(max_tokens=2))[0].reused_tokens for _ in range(2)] == [0, 0]
    llm.close()
    assert not llm.loop.scheduler.tables._prefixes._known


def test_spans_are_chunks_where_tiles_are_encoded_and_windows_rule_them_out() -> None:
    def plan(prefill_chunk: int, prefix_reuse: bool = True, **options: object) -> tuple[int, int, int, int]:
        manifest = make_llm(rows=3, **options).manifest
        found = plan_capacity(
            manifest, 0, max_batch=None, cache_tokens=64, prefill_chunk=prefill_chunk, prefix_reuse=prefix_reuse
        )
        return found.chunk, found.span, found.step_tokens, found.logit_rows

    assert plan(16, windows=FULL) == (0, 4, 16, 3 + 16)
    assert plan(2, windows=FULL) == (0, 4, 3, 3 + 3)
    assert plan(16, windows=WINDOWS) == (0, 0, 16, 3 + 16)
    assert plan(16, False, windows=FULL) == (0, 0, 16, 3 + 16)
    assert plan(11, windows=FULL, encoding=Encoding()) == (8, 8, 11, 3 + 11)
    assert plan(3, windows=FULL, encoding=Encoding()) == (4, 4, 7, 3 + 7)
    assert plan(11, False, windows=FULL, encoding=Encoding()) == (8, 0, 11, 3 + 11)
    assert plan(11, windows=WINDOWS, encoding=Encoding((True, False, True, False))) == (8, 0, 11, 3 + 11)


def test_a_row_is_admitted_when_what_it_does_not_share_finds_tiles() -> None:
    """Ten tiles for each head: of 17 tokens two spans of two tiles are shared; the fifth is a row's own."""
    sizes = {"rows": 3, "context": 64, "step_tokens": 64}
    cache = make_cache(4, FULL)
    tiles = plan_tiles(cache, **sizes, cache_tokens=40)
    tables = TileTables(cache, Capacity(**sizes, logit_rows=4, tiles=tiles, span=SPAN))
    keys, share = span_keys(np.array(A[:17]), SPAN), np.array([17, 0, 0])
    assert tables.admit(0, keys, share, 17) == 0
    assert tables.grow(share)
    tables.advance(share)
    assert tables.publish(0, keys[0]) and tables.publish(0, keys[1]) and not tables.publish(0, keys[1])
    assert tables.admit(1, keys, np.array([17, 37, 0]), 17) is None and tables.held[1] == 0
    assert tables.admit(1, keys, np.array([17, 36, 0]), 17) == tables.held[1] == 16
    tables.release(1)
    tables.release(0)
    assert tables.admit(2, keys, np.array([0, 0, 41]), 17) is None and tables.held[2] == 0
    assert tables.admit(2, keys, np.array([0, 0, 40]), 17) == tables.held[2] == 16
    assert tables.tile_table[0, 2, :, :4].tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_a_key_stands_for_its_tokens_and_all_before() -> None:
    keys = span_keys(np.array(A), SPAN)
    assert len(keys) == len(set(keys)) == 5
    assert span_keys(np.array(A[:39]), SPAN) == keys[:4] and span_keys(np.array(A[:7]), SPAN) == []
    assert span_keys(np.array(A, np.int32), SPAN) == keys, "whatever the width"
    changed = span_keys(np.array([A[0] + 1, *A[1:]]), SPAN)
    assert not set(changed) & set(keys), "the same tokens after another beginning"
    assert len(set(span_keys(np.array(A[:8] * 3), SPAN))) == 3
    assert span_keys(np.array(A), 20)[0] not in keys


families = st.builds(
    lambda base, shared, tail: (A, B, C, D)[base][:shared] + (B, C, D, A)[base][:tail],
    st.integers(0, 3),
    st.integers(1, 36),
    st.integers(0, 6),
)
traffic = st.lists(
    st.builds(
        Arrival,
        prompt=families,
        at=st.integers(0, 30),
        new=st.integers(1, 14),
        score=st.sampled_from([False] * 7 + [True]),
        cancel=st.one_of(st.none(), st.none(), st.integers(0, 40)),
    ),
    min_size=2,
    max_size=16,
)


@pytest.mark.parametrize("case", CASES)
@given(arrivals=traffic, rows=st.integers(1, 4), cache_tokens=st.integers(56, 140))
@settings(max_examples=40, deadline=None)
def test_random_arrivals_match_the_model_without_a_cache(
    case: str, arrivals: list[Arrival], rows: int, cache_tokens: int
) -> None:
    llm = _engine(case, rows=rows, cache_tokens=cache_tokens)
    _serve(llm, case, *arrivals)
    check_ownership(llm.loop.scheduler.tables)
    check_tiles(llm)
