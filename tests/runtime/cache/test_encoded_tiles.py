"""Tests of caches that encode full tiles: a request gets the same tokens as alone, and every tile is freed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.cache.capacity import Capacity, cache_bytes, fit_cache_tokens, plan_tiles, request_bytes
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.sampling import Sampling
from enginewright.runtime.scheduling.scheduler import Scheduler
from enginewright.runtime.scheduling.step import Step
from tests.support.runtime.simulated_requests import Arrival, Kept, check_outputs, check_tiles, serve, watch
from tests.support.runtime.toy_model import FULL, Encoding, greedy, make_cache, make_llm, reference_logits
from tests.support.runtime.toy_session import VOCAB

ALL, SOME = Encoding(), Encoding((True, False, True, False))
CASES = {
    "all": (FULL, ALL),
    "chunks of one tile": (FULL, Encoding(chunk=4)),
    "chunks of three tiles": (FULL, Encoding(chunk=12)),
    "tiles of five tokens": (FULL, Encoding(tile_tokens=5, chunk=10)),
    "some": (FULL, SOME),
    "windows": ((0, 6, 0, 9), ALL),
    "plain windows": ((0, 6, 0, 3), SOME),
    "a window of one tile": ((4, 4, 4, 4), ALL),
}
prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30)
arrivals = st.lists(
    st.builds(
        Arrival,
        prompt=prompts,
        at=st.integers(0, 12),
        new=st.integers(1, 14),
        score=st.sampled_from([False, False, True]),
        cancel=st.one_of(st.none(), st.none(), st.integers(0, 20)),
    ),
    min_size=1,
    max_size=8,
)


def _texts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, length).tolist() for length in lengths]


@pytest.mark.parametrize("case", CASES)
@given(arrivals=arrivals, rows=st.integers(1, 4), cache_tokens=st.integers(52, 120))
@settings(max_examples=40, deadline=None)
def test_random_arrivals_match_the_model_without_a_cache(
    case: str, arrivals: list[Arrival], rows: int, cache_tokens: int
) -> None:
    windows, encoding = CASES[case]
    llm = make_llm(rows=rows, cache_tokens=cache_tokens, windows=windows, encoding=encoding, eos=())
    check_outputs(serve(llm, arrivals), arrivals, windows, encoding)
    check_tiles(llm)


@pytest.mark.parametrize("case", CASES)
def test_preemption_changes_nothing(case: str) -> None:
    """Generated tokens are computed again with the same results, although several of them come in one step."""
    windows, encoding = CASES[case]
    llm = make_llm(rows=3, cache_tokens=52, windows=windows, encoding=encoding, eos=())
    coming = [Arrival(prompt=text, new=30) for text in _texts(9, 13, 6)]
    lengths: list[int] = []
    watch(llm, lambda scheduler, _: lengths.extend(entry.request.length for entry in scheduler.waiting))
    check_outputs(serve(llm, coming), coming, windows, encoding)
    assert any(windows) or max(lengths) > 13, "one had begun, and had to wait"
    check_tiles(llm)


def test_scoring_sees_what_decoding_would_see() -> None:
    """Piece by piece, one tile each; a prompt is read in chunks of several."""
    (text,) = _texts(30)
    llm = make_llm(windows=FULL, encoding=ALL, eos=())
    (request,) = serve(llm, [Arrival(prompt=text, score=True)])
    assert isinstance(request, Kept)
    decoded = [reference_logits(text[: i + 1], FULL, ALL, prompt=1) for i in range(30)]
    np.testing.assert_array_equal(request.logits, decoded)
    assert np.diff(llm.loop.session.steps[3].query_starts)[0] == 4


@given(others=arrivals, at=st.integers(0, 12), rows=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_prompt_is_cut_alike_whatever_else_runs(others: list[Arrival], at: int, rows: int) -> None:
    """The tokens that see each other exactly: as many as fit the chunk's grid, all or none."""
    (text,) = _texts(27)
    llm = make_llm(rows=rows, windows=FULL, encoding=ALL, eos=())
    pieces: dict[object, list[tuple[int, int]]] = {}

    def look(scheduler: Scheduler, step: Step) -> None:
        for entry in scheduler.running:
            if count := int(np.diff(step.packed.query_starts)[entry.row]):
                pieces.setdefault(entry.request, []).append((int(scheduler.tables.held[entry.row]), count))

    watch(llm, look)
    coming = [Arrival(prompt=text, at=at, new=5), *others]
    requests = serve(llm, coming)
    assert pieces[requests[0]] == [(0, 8), (8, 8), (16, 8), (24, 3), (27, 1), (28, 1), (29, 1), (30, 1)]
    for request in requests:
        size = 4 if isinstance(request, Kept) else 8
        for position, count in pieces.get(request, ()):
            if position >= request.prompt_tokens:
                assert count == 1
            else:
                assert position % size == 0
                assert count == min(size, request.prompt_tokens - position)


@pytest.mark.parametrize("cache_tokens", [8, 12, 20, 40, 56])
@pytest.mark.parametrize("case", CASES)
def test_the_longest_request_runs_and_no_longer_one(case: str, cache_tokens: int) -> None:
    windows, encoding = CASES[case]
    llm = make_llm(rows=2, cache_tokens=cache_tokens, windows=windows, encoding=encoding, eos=())
    longest = llm.loop.scheduler.tables.longest_for(0)
    assert 8 <= longest <= 64 + encoding.tile_tokens
    texts = _texts(min(longest, 64), min(longest, 63))
    coming = [Arrival(prompt=texts[0], score=True), Arrival(prompt=texts[1][:3], new=min(longest, 63) - 2)]
    check_outputs(serve(llm, coming), coming, windows, encoding)
    if longest < 63:
        with pytest.raises(RequestError, match=f"expected at most {longest}"):
            llm.logits([1] * (longest + 1))
        with pytest.raises(RequestError, match=f"the cache holds {longest} tokens"):
            llm._generation([1, 2, 3], Sampling(max_tokens=longest - 1))
    check_tiles(llm)


def test_a_pool_of_encoded_tiles_holds_neither_the_first_nor_the_newest() -> None:
    """For 40 tokens in tiles of 4, a row's pool holds 9 tiles for each head, and for 43 tokens just as many."""
    for context in (40, 43):
        sizes = {"rows": 3, "context": context, "step_tokens": 11}
        assert plan_tiles(make_cache(4, FULL, ALL), **sizes, cache_tokens=1000) == (54, 27, 54, 54)
        assert plan_tiles(make_cache(4, FULL, ALL), **sizes, cache_tokens=37) == (20, 10, 20, 20)
    mixed = plan_tiles(make_cache(4, (0, 6, 0, 3), SOME), rows=3, context=43, step_tokens=11, cache_tokens=1000)
    assert mixed == (2 * 27, 3 * (7 // 4 + 2) + 3, 2 * 27, 2 * (3 * (4 // 4 + 2) + 3))
    assert plan_tiles(make_cache(4, FULL, ALL), rows=3, context=7, step_tokens=11, cache_tokens=7) == (2, 1, 2, 2)


def test_cache_bytes_count_pools_and_exact_tiles() -> None:
    """A tile takes 32 bytes, an exact one 64; a row has two of those for each of the 7 heads."""
    cache = make_cache(4, FULL, ALL)
    assert cache_bytes(cache, (20, 10, 20, 20), rows=3) == 70 * 32 + 3 * 7 * 2 * 64
    assert request_bytes(cache, 40) == 7 * 9 * 32 + 7 * 2 * 64
    assert request_bytes(cache, 41) == request_bytes(cache, 43) == request_bytes(cache, 40)
    assert request_bytes(cache, 44) == request_bytes(cache, 40) + 7 * 32
    mixed = make_cache(4, FULL, SOME)
    assert request_bytes(mixed, 40) == (4 * 9 + 3 * 10) * 32 + 4 * 2 * 64


@pytest.mark.parametrize("budget", [1, 3000, 5000, 7777, 10**6])
def test_fit_cache_tokens_counts_the_exact_tiles(budget: int) -> None:
    cache, sizes = make_cache(4, FULL, SOME), {"rows": 3, "context": 64, "step_tokens": 11}
    tokens = fit_cache_tokens(cache, **sizes, budget=budget)
    used, more = (cache_bytes(cache, plan_tiles(cache, **sizes, cache_tokens=n), 3) for n in (tokens, tokens + 4))
    assert used <= budget or tokens == 4
    assert more > budget or tokens == 3 * 64


def test_requests_reach_their_longest_beside_each_other() -> None:
    """A pool for every token of every row never preempts."""
    llm = make_llm(rows=3, context=40, windows=FULL, encoding=ALL, eos=())
    watch(llm, lambda scheduler, _: _none_waits(scheduler))
    coming = [Arrival(prompt=[i] * 3, new=37) for i in range(3)]
    check_outputs(serve(llm, coming), coming, FULL, ALL)


def _none_waits(scheduler: Scheduler) -> None:
    assert not scheduler.waiting


def test_encoded_lengths_say_what_the_next_step_encodes() -> None:
    """The first tile counts, though it is never encoded; layers that encode none have zeros."""
    cache = make_cache(4, FULL, SOME)
    sizes = {"rows": 2, "context": 40, "step_tokens": 10}
    tiles = plan_tiles(cache, **sizes, cache_tokens=80)
    tables = TileTables(cache, Capacity(**sizes, logit_rows=3, tiles=tiles, chunk=8))
    found = []
    for share in ([8, 0], [3, 0], [1, 8], [0, 3], [1, 1]):
        assert tables.grow(np.array(share))
        found.append(tables.encoded_lens[:, 0, :, 0].tolist())
        assert (tables.encoded_lens[:, [0, 2]] == np.array(found[-1])[:, None, :, None]).all()
        assert not tables.encoded_lens[:, [1, 3]].any()
        tables.advance(np.array(share))
    assert found == [
        [[0, 0], [8, 0]],
        [[8, 0], [8, 0]],
        [[8, 0], [12, 8]],
        [[12, 8], [12, 8]],
        [[12, 8], [12, 12]],
    ]
    tables.release(1)
    assert tables.encoded_lens[:, 0, :, 0].tolist() == [[12, 0], [12, 0]]


def test_a_failed_step_leaves_nothing_behind() -> None:
    llm = make_llm(windows=FULL, encoding=ALL, span=8, eos=())
    llm.loop.session.failures = [ValueError("once")]
    handles = llm.submit_all(_texts(20, 9), Sampling(max_tokens=3))
    for handle in handles:
        with pytest.raises(ValueError, match="once"):
            handle.result()
    (text,) = _texts(20)
    done = llm.generate([text], Sampling(max_tokens=3))[0]
    assert list(done.token_ids) == greedy(text, 3, FULL, ALL)
    llm.close()
    check_tiles(llm)
