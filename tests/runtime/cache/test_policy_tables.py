"""Tests of tables under a cache policy: what a token sees is a formula of its position, whatever runs and whatever is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.cache.policy import StoredRow
from enginewright.runtime.cache.policy_tables import PolicyTables
from enginewright.runtime.errors import ExtensionError
from enginewright.runtime.llm import LLM
from tests.support.runtime.evicting_model import SIZE, check_pools, make_llm
from tests.support.runtime.policy_arrivals import ARRIVALS, A, B, check_empty, check_seen
from tests.support.runtime.sample_policies import Seen, budget_per_head, extended, first_and_newest
from tests.support.runtime.simulated_requests import Arrival, evict_all, fits, serve, watch

FULL, MIXED = (0, 0, 0, 0), (0, 6, 0, 3)
CASES: dict[str, tuple[tuple[dict[str, Any], Seen], Sequence[int]]] = {
    "first and newest": (first_and_newest(SIZE, 1, 2), FULL),
    "newest alone": (first_and_newest(SIZE, 0, 1), FULL),
    "next to windows": (first_and_newest(SIZE, 2, 1), MIXED),
    "budgets": (budget_per_head(SIZE, [[1, 4], [3], [0, 2], [30, 1]]), FULL),
    "budgets next to windows": (budget_per_head(SIZE, [[1, 4], [3, 2]]), MIXED),
}


@pytest.fixture(autouse=True, scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with extended(tmp_path_factory.mktemp("extension")):
        yield


def _engine(case: str, **sizes: Any) -> LLM:
    (policy, _), windows = CASES[case]
    llm = make_llm(policy, windows, **sizes)
    watch(llm, lambda scheduler, _: check_pools(scheduler.tables))
    return llm


def _check(case: str, requests: Sequence[Any], arrivals: Sequence[Arrival]) -> None:
    check_seen(requests, arrivals, CASES[case][1], CASES[case][0][1])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [1, 11, 12, 13, 40])
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
def test_within_the_budget_tokens_are_those_without_a_policy(case: str) -> None:
    _, windows = CASES[case]
    arrivals = [Arrival(prompt=A[:3], new=1)]
    assert serve(_engine(case), arrivals)[0].generated == serve(make_llm({}, windows), arrivals)[0].generated


@given(
    ARRIVALS,
    st.sampled_from(sorted(CASES)),
    st.integers(1, 3),
    st.integers(3, 20),
    st.integers(80, 240),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_random_arrivals_get_what_they_get_alone(
    arrivals: list[Arrival], case: str, rows: int, step_tokens: int, cache_tokens: int, shares: bool
) -> None:
    _, windows = CASES[case]
    span = 2 * SIZE * (shares and not any(windows))
    llm = _engine(case, rows=rows, step_tokens=step_tokens, cache_tokens=cache_tokens, span=span)
    arrivals = [each for each in arrivals if fits(llm, each)]
    _check(case, serve(llm, arrivals), arrivals)
    check_empty(llm)


def test_what_is_held_stays_within_the_budget() -> None:
    llm = _engine("first and newest", rows=2)
    tables, most = llm.loop.scheduler.tables, []
    assert isinstance(tables, PolicyTables)
    full = tables.free_tiles
    assert full == (2 * 2 * 4, 2 * 4, 2 * 2 * 4, 2 * 2 * 4), "rows, heads, and three tiles with one that fills up"
    watch(llm, lambda scheduler, step: most.append(np.subtract(full, scheduler.tables.free_tiles).tolist()))
    serve(llm, [Arrival(prompt=A[:50], new=40), Arrival(prompt=B[:9], new=40)])
    assert np.max(most, axis=0).tolist() == [16, 8, 16, 16]
    check_empty(llm)


def test_layers_and_heads_hold_what_each_is_given() -> None:
    llm = _engine("budgets")
    tables = llm.loop.scheduler.tables
    llm.loop.scheduler.submit(llm.loop.scheduler.decoder.start(llm._generation(A[:30], None)))
    while tables.held[0] < 50:
        llm.loop.step()
    assert tables.held[0] == 50
    # positions 30, 34 .. 50: 12 full tiles and two tokens, of which a head keeps its budget
    wanted = [[6, 18], [14, 0], [2, 10], [50, 6]]
    lens = tables.kv_lens[:, 0].copy()
    lens[1, 1] = 0  # layer 1 has one head
    assert lens.tolist() == wanted
    assert isinstance(tables, PolicyTables)
    row = tables._stored_row(0)
    assert row.stored.tolist() == wanted and row.whole_tiles[0].tolist() == [1, 4]
    assert row.positions(0, 0).tolist() == [44, 45, 46, 47, 48, 49]
    assert row.positions(2, 0).tolist() == [48, 49]
    assert row.positions(3, 0).tolist() == list(range(50))


def test_a_preempted_row_evicts_the_same_again() -> None:
    case = "budgets"  # one of its heads keeps everything, so that tiles run out late
    llm = _engine(case, rows=3, cache_tokens=80)
    waited, arrivals = set[int](), [Arrival(prompt=[i + 1] * 9, new=60) for i in range(3)]
    watch(llm, lambda scheduler, _: waited.update(r.request.length for r in scheduler.waiting if r.request.length > 9))
    _check(case, serve(llm, arrivals), arrivals)
    assert any(length > 20 for length in waited), "after its first eviction"
    check_empty(llm)


class TestPrefixes:
    """Rows share what lies before their first eviction."""

    def _reused(self, llm: LLM, *arrivals: Arrival, case: str) -> list[int]:
        requests = serve(llm, arrivals)
        _check(case, requests, arrivals)
        return [request.completion.reused_tokens for request in requests]

    def test_a_prompt_reuses_whole_spans_before_its_own_first_eviction(self) -> None:
        case = "first and newest"  # due at 16 tokens
        llm = _engine(case, span=8)
        assert self._reused(llm, Arrival(prompt=A[:40], new=20), case=case) == [0]
        assert self._reused(llm, Arrival(prompt=A[:40], new=20), case=case) == [8]
        check_empty(llm)

    def test_a_prompt_that_is_held_whole_is_reused_whole(self) -> None:
        case = "budgets"  # due at the prompt's end
        llm = _engine(case, span=8)
        assert self._reused(llm, Arrival(prompt=A[:40], new=20), case=case) == [0]
        assert self._reused(llm, Arrival(prompt=A[:44], new=20), Arrival(prompt=A[:20], new=9), case=case) == [40, 16]
        check_empty(llm)

    def test_a_row_that_evicts_leaves_shared_tiles_to_the_others(self) -> None:
        case = "budgets"
        llm = _engine(case, span=8, rows=3)
        arrivals = [
            Arrival(prompt=A[:24], new=2),
            Arrival(prompt=A[:25], new=30, at=4),
            Arrival(prompt=A[:40], new=30, at=5),
        ]
        assert self._reused(llm, *arrivals, case=case) == [0, 24, 24]
        check_empty(llm)

    def test_prefixes_give_way_where_tiles_are_needed(self) -> None:
        case = "first and newest"
        llm = _engine(case, span=8, rows=1, cache_tokens=16)
        tables = llm.loop.scheduler.tables
        for text in (A, B, A[3:], B[5:], A):
            self._reused(llm, Arrival(prompt=text[:30], new=30), case=case)
        assert sum(len(prefix.tiles[0][0]) for prefix in tables._prefixes._known.values()) <= 4
        evict_all(tables)
        check_empty(llm)


class TestBrokenPolicies:
    """A policy that does not keep its word ends the requests of that step, and says why."""

    def _run(self, monkeypatch: pytest.MonkeyPatch, **methods: Any) -> None:
        llm = make_llm(CASES["first and newest"][0][0], FULL)
        tables = llm.loop.scheduler.tables
        assert isinstance(tables, PolicyTables)
        for name, method in methods.items():
            monkeypatch.setattr(tables._policy, name, method)
        serve(llm, [Arrival(prompt=A[:30], new=30)])

    def test_masks_of_another_shape(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ExtensionError, match=r"keep: got a mask of shape \(3,\).*broadcasts to \(4, 2, 4\)"):
            self._run(monkeypatch, keep=lambda rows, session: [np.ones(3, bool)] * len(rows))

    def test_a_mask_too_few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ExtensionError, match="FirstAndNewest: keep: got 0 masks, expected 1"):
            self._run(monkeypatch, keep=lambda rows, session: [])

    def test_a_time_that_is_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ExtensionError, match="next_due: got 0, expected more than the 0 tokens processed"):
            self._run(monkeypatch, next_due=lambda row: row.processed)

    def test_more_than_it_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ExtensionError, match="next_due: got 20 at 0 tokens, when up to 5 tiles"):
            self._run(monkeypatch, next_due=lambda row: row.processed + 20)

    def test_nothing_evicted_when_the_room_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ExtensionError, match=r"next_due: got \d+ at 16 tokens"):
            self._run(
                monkeypatch,
                keep=lambda rows, session: [np.ones(4, bool)] * len(rows),
                next_due=lambda row: row.processed + 16 - int(row.stored.max()) % 16,
            )


def test_positions_of_what_an_eviction_left_and_of_what_came_after() -> None:
    row = StoredRow(
        row=0,
        prompt_tokens=3,
        processed=22,
        stored=np.array([[10]]),
        kept=np.array([[[0, 1, 2, 3, 16, 17, 0]]]),
        left=np.array([[6]]),
        tile_tokens=4,
    )
    assert row.positions(0, 0).tolist() == [0, 1, 2, 3, 16, 17, 18, 19, 20, 21]
    assert row.whole_tiles.tolist() == [[2]]
