"""Engines that evict: logits are those of the model with what left the cache masked, whatever the score and the allocation."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime import LLM, Sampling, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.cache.capacity import cache_bytes
from enginewright.runtime.cache.policy import governed_layers
from enginewright.runtime.cli import main
from tests.support.exporters.families import make_model
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker
from tests.support.exporters.masked_reference import masked_logits, recorded

pytestmark = pytest.mark.native

GREEDY = Sampling(max_tokens=120, ignore_eos=True)
SMALL = "budget=40,interval=16"


def recipe(options: str, **changes: Any) -> Recipe:
    return Recipe(apply=(parse_method(f"evict:{options}"),), kv_bits=32, max_context=512, **changes)


def text_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 250, length).tolist()


def check_masked(family: str, root: Path, length: int, **changes: Any) -> None:
    """A scored text's logits are those of the model that sees what the engine kept, and evictions happened."""
    tokens = text_of(length)
    with load(root, 1, max_batch=1) as llm, recorded(llm) as evictions:
        got = llm.logits(tokens)
        layers = governed_layers(llm.manifest.cache)
    assert len(evictions) >= 3 and any(len(own) < time for time, kept in evictions for layer in kept for own in layer)
    wanted = masked_logits(make_model(family, gain=3.0), tokens, evictions, layers)
    assert np.abs(got - wanted).max() <= 2e-4 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3", SMALL),
        pytest.param("llama", f"{SMALL},score=snapkv-prompt", marks=pytest.mark.slow),
        pytest.param("llama", f"{SMALL},score=h2o", marks=pytest.mark.slow),
        pytest.param("qwen3", "budget=65,interval=48,score=lazy,alpha=0.02", marks=pytest.mark.slow),
        pytest.param("gemma3_text", f"{SMALL},score=tova", marks=pytest.mark.slow),  # a window next to a global layer
        pytest.param("gpt_oss", f"{SMALL},score=snapkv", marks=pytest.mark.slow),  # sinks
        pytest.param("llama", f"{SMALL},allocation=reasonalloc,layers=false", marks=pytest.mark.slow),
        pytest.param("llama", f"{SMALL},score=streaming,allocation=pyramid", marks=pytest.mark.slow),
        pytest.param("llama", f"{SMALL},score=random,allocation=ada,prefill=chunk", marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_the_model_with_what_left_masked(
    family: str, options: str, checkpoint: CheckpointMaker, engine: EngineMaker
) -> None:
    root, _ = engine(checkpoint(family, gain=3.0), recipe(options))
    check_masked(family, root, 300)


@pytest.fixture(scope="module")
def rkv(checkpoint: CheckpointMaker, engine: EngineMaker) -> Path:
    return engine(checkpoint("qwen3", gain=3.0), recipe(SMALL))[0]


def with_policy(root: Path, folder: Path, **changes: Any) -> Path:
    """The same engine with other options of its policy."""
    target = folder / "engine"
    shutil.copytree(root, target)
    manifest = directory.load(root, verify=False)
    cache = dataclasses.replace(manifest.cache, policy={**manifest.cache.policy, **changes})
    directory.save(dataclasses.replace(manifest, cache=cache), target)
    return target


def generate(llm: LLM, prompts: list[list[int]], sampling: Sampling = GREEDY) -> list[tuple[int, ...]]:
    return [each.token_ids for each in llm.generate(prompts, sampling)]


PROMPTS = (text_of(150), text_of(30, 1), text_of(200, 2), text_of(64, 3))


@pytest.fixture(scope="module")
def wanted(rkv: Path) -> list[tuple[int, ...]]:
    with load(rkv, 1, max_batch=1, prefix_reuse=False) as llm:
        return [generate(llm, [prompt])[0] for prompt in PROMPTS]


class TestRows:
    """A row's tokens do not depend on its neighbours, on reuse, on chunks or on preemption."""

    def test_neighbours_and_chunks(self, rkv: Path, wanted: list[tuple[int, ...]]) -> None:
        with load(rkv, 1, max_batch=4, prefill_chunk=48) as llm:
            assert generate(llm, list(PROMPTS)) == wanted
            assert generate(llm, list(PROMPTS)) == wanted, "with what the first ones left in the prefix cache"

    def test_preemption(self, rkv: Path, wanted: list[tuple[int, ...]]) -> None:
        with load(rkv, 1, max_batch=4, cache_tokens=512) as llm:
            scheduler, preempted = llm.loop.scheduler, set[int]()
            llm.loop.observer = lambda _: preempted.update(
                each.request.length for each in scheduler.waiting if each.request.length > each.request.prompt_tokens
            )
            assert generate(llm, list(PROMPTS)) == wanted
        assert preempted

    def test_a_prompt_that_begins_the_same(self, rkv: Path) -> None:
        prompt = text_of(280)
        with load(rkv, 1, max_batch=2) as llm:
            first, second = (llm.generate([prompt], GREEDY)[0] for _ in range(2))
        assert first.token_ids == second.token_ids and (first.reused_tokens, second.reused_tokens) == (0, 256)


def test_within_the_budget_tokens_are_those_without_a_policy(
    rkv: Path, checkpoint: CheckpointMaker, engine: EngineMaker, tmp_path: Path
) -> None:
    plain, _ = engine(checkpoint("qwen3", gain=3.0), Recipe(kv_bits=32, max_context=512))
    large = with_policy(rkv, tmp_path, budget=512)
    prompts = [text_of(100), text_of(33, 1)]
    with load(large, 1) as llm, load(plain, 1) as other:
        assert generate(llm, prompts) == generate(other, prompts)


@pytest.mark.slow
def test_a_cache_of_few_tiles_serves_a_long_answer(checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    long = dataclasses.replace(recipe("budget=200,interval=100"), max_context=4224)
    root, _ = engine(checkpoint("qwen3", gain=3.0, max_position_embeddings=4224), long)
    found = []
    for cache_tokens in (384, None):
        with load(root, 1, max_batch=2, cache_tokens=cache_tokens) as llm:
            tiles = llm.capacity.tiles
            found.append(generate(llm, [text_of(20), text_of(90, 1)], Sampling(max_tokens=4000, ignore_eos=True)))
            assert tiles == (11, 11) if cache_tokens else min(tiles) > 100, "three of each head, and five for copies"
    assert found[0] == found[1] and len(found[0][0]) == 4000


def test_twice_the_same_eviction_changes_nothing(rkv: Path) -> None:
    with load(rkv, 1, max_batch=1) as llm:
        loop = llm.loop
        loop.scheduler.submit(loop.scheduler.decoder.start(llm._generation(text_of(100), None)))
        tables = loop.scheduler.tables
        while not any(pool.gone[0].any() for pool in tables._pools):  # type: ignore[attr-defined]
            loop.step()
        before = [pool.gone.copy() for pool in tables._pools], tables.tile_table.copy()  # type: ignore[attr-defined]
        tables._due[0] = tables.held[0]  # type: ignore[attr-defined]
        assert tables.evict_due(loop.session) is None
        after = [pool.gone for pool in tables._pools], tables.tile_table  # type: ignore[attr-defined]
        assert all((a == b).all() for a, b in zip(before[0], after[0], strict=True)) and (before[1] == after[1]).all()


def test_what_the_engine_says_of_itself(rkv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = directory.load(rkv)
    assert set(manifest.graphs) == {"decoder", "scores", "compact"}
    assert manifest.cache.policy == {"kind": "evict", "score": "rkv", "budget": 40, "interval": 16}
    assert [(each.query_heads, each.held_queries, each.marks) for each in manifest.cache.layers] == [(4, 15, 0)] * 2
    assert main(["inspect", str(rkv), "--json"]) == 0
    cache = json.loads(capsys.readouterr().out)["cache"]
    tile = manifest.cache.layers[0].tile_bytes
    queries = 2 * 4 * 4 * 15 * manifest.cache.layers[0].key_dim  # layers, bytes, heads, held queries
    assert cache["policy"]["score"] == "rkv"
    assert cache["evicting"] == {
        "tokens_per_head": [40, 40],
        "heads": 4,
        "whole_heads": 0,
        "bytes_per_request": 2 * 2 * tile + queries,
        "bytes_with_whole_prompt": 2 * 2 * 4 * tile + queries,
        "bytes_without_policy": 2 * 2 * 4 * tile,
        "queries_bytes_per_request": queries,
        "marks_bytes_per_token": 0,
        "copies_bytes": 2 * 2 * tile,
    }
    assert cache["requests"] == (2**30 - 4 * tile) // (4 * tile + queries)
    assert main(["inspect", str(rkv)]) == 0
    text = capsys.readouterr().out
    assert "keeps 40 tokens of each head, on average" in text and "while a prompt of as many is read" in text


@pytest.mark.parametrize("options", ["", pytest.param(",score=h2o", marks=pytest.mark.slow)])
def test_bytes_of_the_cache_are_those_of_its_buffers(
    options: str, rkv: Path, checkpoint: CheckpointMaker, engine: EngineMaker
) -> None:
    root = engine(checkpoint("qwen3", gain=3.0), recipe(SMALL + options))[0] if options else rkv
    with load(root, 1, max_batch=3) as llm:
        pools = [each.nbytes for name, each in llm.loop.session._buffers.items() if name.startswith("kv.")]  # type: ignore[attr-defined]
        assert sum(pools) == cache_bytes(llm.manifest.cache, llm.capacity.tiles, llm.capacity.rows)
