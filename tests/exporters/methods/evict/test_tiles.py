"""Engines from which whole tiles leave, exact ones or encoded ones: as alone, as without a policy, as the model with masks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime import LLM, Sampling, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.cache.capacity import cache_bytes
from enginewright.runtime.cache.policy import governed_layers
from tests.support.exporters.families import make_model
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker
from tests.support.exporters.masked_reference import masked_logits, recorded
from tests.support.exporters.reasoner_engines import count_preemptions

pytestmark = [pytest.mark.native, pytest.mark.slow]

TILES = "evict:granularity=tile,budget=384"
CODES = "kvarn:k_bits=8,v_bits=8"
GREEDY = Sampling(max_tokens=300, ignore_eos=True)
RECORDS = "evict:granularity=record,budget=384"
CACHES = [
    pytest.param((TILES,), id="exact"),
    pytest.param((CODES, TILES), id="encoded"),
    pytest.param((CODES, f"{TILES},prefill=chunk"), id="encoded by chunks"),
    pytest.param((CODES, RECORDS), id="before encoding"),
]


def recipe(*apply: str) -> Recipe:
    return Recipe(apply=tuple(map(parse_method, apply)), max_context=1024)


def text_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 250, length).tolist()


PROMPTS = (text_of(300), text_of(30, 1), text_of(600, 2), text_of(256, 3))


def generate(llm: LLM, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    return [each.token_ids for each in llm.generate(prompts, GREEDY)]


def build(checkpoint: CheckpointMaker, engine: EngineMaker, *apply: str) -> Path:
    return engine(checkpoint("qwen3", gain=3.0, max_position_embeddings=1024), recipe(*apply))[0]


def scarce(free: Callable[[list[int]], bool], running: Sequence[object]) -> Callable[[list[int]], bool]:
    """The search for free tiles that fails at every third call, as long as there is a row to put off."""
    calls = itertools.count(1)
    return lambda wanted: (next(calls) % 3 != 0 or len(running) == 1) and free(wanted)


@pytest.mark.parametrize("apply", CACHES)
def test_rows_are_as_alone(
    apply: tuple[str, ...], checkpoint: CheckpointMaker, engine: EngineMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = build(checkpoint, engine, *apply)
    with load(root, 1, max_batch=1, prefix_reuse=False) as llm:
        wanted = [generate(llm, [prompt])[0] for prompt in PROMPTS]
    with load(root, 1, max_batch=4) as llm:
        assert generate(llm, list(PROMPTS)) == wanted
        assert generate(llm, list(PROMPTS)) == wanted, "with what the first ones left in the prefix cache"
    preempted = count_preemptions(monkeypatch)
    with load(root, 1, max_batch=4, cache_tokens=640 if apply == (TILES,) else 512) as llm:
        tables, running = llm.loop.scheduler.tables, llm.loop.scheduler.running
        if RECORDS in apply:
            monkeypatch.setattr(tables, "_free_for_copies", scarce(tables._free_for_copies, running))  # type: ignore[attr-defined]
        assert generate(llm, list(PROMPTS)) == wanted
    assert preempted[0]


@pytest.mark.parametrize("apply", CACHES)
def test_logits_are_those_of_the_model_with_what_left_masked(
    apply: tuple[str, ...], checkpoint: CheckpointMaker, engine: EngineMaker
) -> None:
    tokens = text_of(900)
    with load(build(checkpoint, engine, *apply), 1, max_batch=1) as llm, recorded(llm) as evictions:
        got = llm.logits(tokens)
        tables, layers = llm.loop.scheduler.tables, governed_layers(llm.manifest.cache)
    last = [own for layer in evictions[-1][1] for own in layer]
    assert len(evictions) >= 4 and max(map(len, last)) == 384 and len({tuple(own) for own in last}) > 1
    assert all((own[:128] == np.arange(128)).all() for own in last), "the first tile stays"
    assert not tables.kv_lens[:, 0].any(), "the row is free again"
    model = make_model("qwen3", gain=3.0, max_position_embeddings=1024)
    wanted = masked_logits(model, tokens, evictions, layers)
    everything = [(time, [[np.arange(time) for _ in layer] for layer in kept]) for time, kept in evictions]
    far = np.abs(masked_logits(model, tokens, everything, layers) - wanted)[600:]
    errors = np.abs(got - wanted)[600:]
    assert errors.mean() < 0.05 * far.mean()


def test_within_the_budget_a_cache_of_codes_is_as_without_a_policy(
    checkpoint: CheckpointMaker, engine: EngineMaker
) -> None:
    large = build(checkpoint, engine, CODES, "evict:granularity=tile,budget=1024")
    with load(large, 1) as llm, load(build(checkpoint, engine, CODES), 1) as other:
        assert generate(llm, list(PROMPTS)) == generate(other, list(PROMPTS))


def test_bytes_of_the_cache_are_those_of_its_buffers(checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    for apply in ((CODES, TILES), (CODES, RECORDS)):
        with load(build(checkpoint, engine, *apply), 1, max_batch=3) as llm:
            buffers = llm.loop.session._buffers  # type: ignore[attr-defined]
            pools = [each.nbytes for name, each in buffers.items() if name.startswith("kv.")]
            assert sum(pools) == cache_bytes(llm.manifest.cache, llm.capacity.tiles, llm.capacity.rows)


def test_graphs_are_those_of_what_leaves(checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    manifest = directory.load(build(checkpoint, engine, CODES, TILES))
    assert set(manifest.graphs) == {"decoder", "scores"}
    assert manifest.cache.policy["granularity"] == "tile"
    chosen = directory.load(build(checkpoint, engine, CODES, RECORDS))
    assert set(chosen.graphs) == {"decoder", "scores", "compact", "encode"}
    assert {each.exact_tiles for each in chosen.cache.layers} == {3}
    streaming = directory.load(build(checkpoint, engine, f"{TILES},score=streaming"))
    assert set(streaming.graphs) == {"decoder"}
