"""Tests of cache policies in whole engines: real attention over what a policy keeps, sizes, and refusals that name both sides."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.plugins.libraries.locate import ort_library
from enginewright.runtime import ArtifactError, Sampling, UnsupportedError, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.cache.capacity import cache_bytes, plan_tiles, request_bytes
from enginewright.runtime.cache.policy import check_policy, open_policy
from enginewright.runtime.cli import main
from tests.support.runtime import tiny_reference
from tests.support.runtime.fake_cuda import FakeCuda
from tests.support.runtime.sample_policies import Seen, budget_per_head, extended, first_and_newest
from tests.support.runtime.tensorrt_engines import add_plan, install
from tests.support.runtime.toy_model import make_cache

TILE = 128
HEADS, WINDOWS = (1, 4, 2), (0, 0, 100)
POLICIES = {
    "first and newest": first_and_newest(TILE, 1, 1),
    "budgets": budget_per_head(TILE, [[1], [0, 2, 9, 1]]),
}
GREEDY = Sampling(max_tokens=150, ignore_eos=True)
# Keys and values near the middle of two halves round the other way in float32 than in float64; logits are of size 100.
TOLERANCE = 0.15


@pytest.fixture(autouse=True, scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with extended(tmp_path_factory.mktemp("extension")):
        yield


@pytest.fixture(scope="module")
def engine(make_engine: Callable[..., Path]) -> Callable[[dict[str, Any]], Path]:
    """An engine with a policy, two full layers of other numbers of heads and a windowed one."""
    made: dict[str, Path] = {}

    def make(policy: dict[str, Any]) -> Path:
        key = json.dumps(policy)
        if key not in made:
            made[key] = make_engine(windows=WINDOWS, kv_heads=HEADS, policy=policy)
        return made[key]

    return make


def prompts_of(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 290, length).tolist() for length in lengths]


def check(root: Path, prompt: list[int], tokens: tuple[int, ...], seen: Seen) -> None:
    """Each token is the most probable one by numpy's attention over what the policy keeps."""
    everything = [*prompt, *tokens]

    def seen_of_layer(layer: int, head: int, position: int) -> np.ndarray:
        if WINDOWS[layer]:
            return np.arange(position + 1)
        return seen(layer, head, position, len(prompt))

    wanted = tiny_reference.logits(root, everything[:-1], seen_of_layer)[len(prompt) - 1 :]
    chosen = np.take_along_axis(wanted, np.array(tokens)[:, None], axis=1)[:, 0]
    assert (chosen >= wanted.max(axis=1) - TOLERANCE).all()


@pytest.mark.native
@pytest.mark.parametrize("name", POLICIES)
class TestEngines:
    def test_attention_sees_what_the_policy_keeps(self, name: str, engine: Callable[[dict[str, Any]], Path]) -> None:
        policy, seen = POLICIES[name]
        prompts = prompts_of(500, 3, 128, 270)
        with load(engine(policy), 1, max_batch=3, prefill_chunk=96) as llm:
            full = llm.loop.scheduler.snapshot().free_tiles
            for prompt, completion in zip(prompts, llm.generate(prompts, GREEDY), strict=True):
                check(engine(policy), prompt, completion.token_ids, seen)
            state = llm.loop.scheduler.snapshot()
            assert state.free_tiles == full and not state.held.any()

    def test_neighbours_chunks_and_preemption_change_nothing(
        self, name: str, engine: Callable[[dict[str, Any]], Path]
    ) -> None:
        policy, _ = POLICIES[name]
        prompts, sampling = prompts_of(300, 20, 40), Sampling(max_tokens=300, ignore_eos=True)
        with load(engine(policy), 1, max_batch=1, cache_tokens=1024) as alone:
            wanted = [alone.generate([prompt], sampling)[0].token_ids for prompt in prompts]
        with load(engine(policy), 1, max_batch=3, prefill_chunk=70, cache_tokens=768) as tight:
            preempted: list[int] = []
            scheduler = tight.loop.scheduler
            tight.loop.observer = lambda _: preempted.extend(
                each.request.length for each in scheduler.waiting if each.request.length > each.request.prompt_tokens
            )
            assert [each.token_ids for each in tight.generate(prompts, sampling)] == wanted
        if name == "budgets":  # one of its heads keeps 9 tiles, so that tiles run out late
            assert preempted

    def test_within_the_budget_nothing_changes(self, name: str, engine: Callable[[dict[str, Any]], Path]) -> None:
        prompts, sampling = prompts_of(5, 60), Sampling(max_tokens=60, ignore_eos=True)
        with load(engine(POLICIES[name][0]), 1) as llm, load(engine({}), 1) as plain:
            assert [c.token_ids for c in llm.generate(prompts, sampling)] == [
                c.token_ids for c in plain.generate(prompts, sampling)
            ]

    def test_a_plan_on_a_device_gives_the_same(
        self, name: str, engine: Callable[[dict[str, Any]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = engine(POLICIES[name][0])
        prompts = prompts_of(400, 100, 3)
        with load(root, 1, max_batch=3) as llm:
            wanted = [each.token_ids for each in llm.generate(prompts, GREEDY)]
        install(monkeypatch, FakeCuda(), ort_library())
        with load(add_plan(root, tmp_path / "plan"), max_batch=3) as llm:
            assert type(llm.loop.session).__name__ == "TensorRTSession"
            assert [each.token_ids for each in llm.generate(prompts, GREEDY)] == wanted


@pytest.mark.native
def test_pools_are_as_small_as_the_policy_allows(engine: Callable[[dict[str, Any]], Path]) -> None:
    with load(engine(POLICIES["first and newest"][0]), 1, max_batch=4) as llm:
        assert llm.capacity.tiles == (4 * 3 * 1, 4 * 3 * 4, llm.capacity.tiles[2])
        (prompt,) = prompts_of(900)
        llm.generate([prompt], Sampling(max_tokens=100, ignore_eos=True))
    with load(engine({}), 1, max_batch=4) as llm:
        assert llm.capacity.tiles[:2] == (4 * 8 * 1, 4 * 8 * 4)


def test_a_budget_per_head_counts_in_pools_and_requests() -> None:
    cache = dataclasses.replace(
        make_cache(4, (0, 0, 0, 0)), policy=budget_per_head(4, [[0, 2], [1], [3, 3], [0, 0]])[0]
    )
    plain = dataclasses.replace(cache, policy={})
    sizes = {"rows": 2, "context": 40, "step_tokens": 8, "cache_tokens": 80}
    # a prompt may be as long as the context, and is held whole
    assert plan_tiles(cache, **sizes) == plan_tiles(plain, **sizes)
    cache = dataclasses.replace(cache, policy=first_and_newest(4, 1, 1)[0])
    assert plan_tiles(cache, **sizes) == (2 * 3 * 2, 2 * 3, 2 * 3 * 2, 2 * 3 * 2)
    assert plan_tiles(cache, **{**sizes, "cache_tokens": 16}) == (4 * 2, 4, 4 * 2, 4 * 2)
    assert request_bytes(cache, 40) == cache_bytes(cache, (6, 3, 6, 6), 1) < request_bytes(plain, 40)


def test_inspect_names_the_policy(engine: Callable[[dict[str, Any]], Path], capsys: pytest.CaptureFixture[str]) -> None:
    root = engine(POLICIES["first and newest"][0])
    assert main(["inspect", str(root)]) == 0
    assert "policy first_and_newest, first 1, newest 1" in capsys.readouterr().out
    assert main(["inspect", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cache"]["policy"] == POLICIES["first and newest"][0]
    assert main(["inspect", str(engine({}))]) == 0
    assert "policy" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            {"kind": "newest"},
            "cache.policy.kind: got 'newest', expected one of budget_per_head, evict, first_and_newest",
        ),
        ({"first": 1}, "cache.policy.kind: got None, expected one of"),
        (
            {"kind": "first_and_newest", "last": 1},
            "policy 'first_and_newest': cache.policy: unknown key 'last'; known: first",
        ),
        (
            {"kind": "first_and_newest", "first": "1"},
            "policy 'first_and_newest': cache.policy.first: got '1', expected int",
        ),
        (
            {"kind": "first_and_newest", "first": -1},
            "policy 'first_and_newest': cache.policy.first: got -1, expected 0 or more",
        ),
        ({"kind": "budget_per_head"}, "policy 'budget_per_head': cache.policy: key 'budgets' is missing"),
    ],
)
def test_a_policy_that_is_not_known_is_refused(
    policy: dict[str, Any], message: str, make_engine: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_engine(policy=policy)
    with pytest.raises(ArtifactError, match=message):
        load(root, 1)
    shutil.rmtree(root)


class TestCaches:
    """Caches that a policy cannot evict from: the policy and the cache are named."""

    def test_encoded(self, make_engine: Callable[..., Path]) -> None:
        root = make_engine(windows=(0, 0, 0), encoded=(True, False, True), policy={"kind": "evict", "budget": 40})
        with pytest.raises(UnsupportedError, match="policy 'evict' evicts single tokens, but the cache is kvarn"):
            load(root, 1)

    def test_dense(self) -> None:
        cache = dataclasses.replace(make_cache(), kind="dense", policy=POLICIES["budgets"][0])
        with pytest.raises(UnsupportedError, match="policy 'budget_per_head' evicts tiles, but the cache is dense"):
            open_policy(cache)

    def test_windows_alone(self, make_engine: Callable[..., Path]) -> None:
        root = make_engine(windows=(64, 64, 64), policy=POLICIES["budgets"][0])
        with pytest.raises(UnsupportedError, match="but every layer has a window"):
            load(root, 1)


class TestAbilities:
    """What the session offers is compared with what the policy needs."""

    CACHE = dataclasses.replace(make_cache(windows=(0, 0, 0, 0)), policy=POLICIES["first and newest"][0])

    def test_missing_ones_are_named(self) -> None:
        with pytest.raises(
            UnsupportedError, match="'first_and_newest': needs tiles, but the backend's session offers nothing"
        ):
            check_policy(self.CACHE, frozenset(), tokens_a_step=1)
        with pytest.raises(UnsupportedError, match="needs tiles, but the backend's session offers compact, scores;"):
            check_policy(self.CACHE, frozenset({"scores", "compact"}), tokens_a_step=1)

    def test_several_tokens_a_step_are_refused(self) -> None:
        with pytest.raises(UnsupportedError, match="but the engine decides up to 3 in a step"):
            check_policy(self.CACHE, frozenset({"tiles"}), tokens_a_step=3)

    def test_without_a_policy_nothing_is_asked(self) -> None:
        check_policy(make_cache(), frozenset(), tokens_a_step=3)


def test_the_manifest_keeps_the_policy(engine: Callable[[dict[str, Any]], Path]) -> None:
    assert directory.load(engine(POLICIES["budgets"][0])).cache.policy == POLICIES["budgets"][0]
    assert directory.load(engine({})).cache.policy == {}
