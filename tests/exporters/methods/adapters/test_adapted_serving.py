"""Engines with adapters and steering at once: rows of one batch are as alone, through everything that a scheduler does."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.methods.steering.vector_folder import write_vectors
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime import LLM, RequestError, Sampling, load
from tests.support.exporters.adapters import train_with_peft
from tests.support.exporters.reasoner_engines import MODEL, Engines, alone, count_preemptions, prompts_of, together
from tests.support.paths import EXAMPLES

pytestmark = [pytest.mark.native, pytest.mark.slow]

ADAPT, STEER = "adapters:capacity=3,rank=8", "steering:capacity=1"
PLAIN = Sampling(max_tokens=24, ignore_eos=True)
FIRST = dataclasses.replace(PLAIN, adapter="first")
SECOND = dataclasses.replace(PLAIN, adapter="second", adapter_scale=8.0)
BOTH = dataclasses.replace(FIRST, vector="calm")
MIXED = [FIRST, PLAIN, SECOND, BOTH]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters of different ranks, and a vector, by name."""
    root = tmp_path_factory.mktemp("adapted")
    chosen = {
        "first": ("all-linear", 8),
        "second": (["q_proj", "o_proj", "up_proj", "down_proj"], 3),
        "third": ("all-linear", 4),
    }
    found = {}
    for seed, (name, (targets, rank)) in enumerate(chosen.items()):
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        found[name] = train_with_peft(model, root / name, seed=seed, target_modules=targets, r=rank)
    checkpoint = open_checkpoint(str(MODEL))
    vector = np.random.default_rng(0).normal(0, 6, checkpoint.config.hidden_size).astype(np.float32)
    given = {"name": "it", "sha256": hash_of(checkpoint)}
    write_vectors(root / "calm", {"dfv.0": vector, "fv": vector}, task="calm", model=given, layer=0, more={})
    return {**found, "calm": root / "calm"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def llm(engine: Engines, folders: dict[str, Path]) -> Iterator[LLM]:
    """An engine with two adapters and a vector, which tests leave there."""
    with load(engine(ADAPT, STEER), 1) as loaded:
        give(loaded, folders)
        yield loaded


def give(llm: LLM, folders: dict[str, Path]) -> None:
    assert [llm.load_adapter(folders[name]) for name in ("first", "second")] == ["first", "second"]
    if "steering" in llm.manifest.conditions:
        llm.load_vector(folders["calm"])


def test_rows_without_an_adapter_are_those_of_a_plain_engine(llm: LLM, engine: Engines) -> None:
    """Bit for bit; and next to rows with adapters and vectors, every row is as alone."""
    prompts = prompts_of(llm)
    with load(engine(), 1) as plain:
        np.testing.assert_array_equal(llm.logits(prompts[2]), plain.logits(prompts[2]))
        expected = alone(plain, prompts, [PLAIN] * 4)
    found = together(llm, prompts, MIXED)
    assert found == alone(llm, prompts, MIXED)
    assert found[1] == expected[1]
    without = llm.logits(prompts[0])
    for sampling in (FIRST, SECOND, BOTH):
        assert np.abs(llm.logits(prompts[0], sampling) - without).max() > 1, "it acts"
    assert found[3] != alone(llm, prompts[3:], [FIRST])[0], "the vector acts, too"
    assert alone(llm, prompts[:1], [dataclasses.replace(FIRST, adapter_scale=0)]) == expected[:1]


def test_chunks_and_preemption(
    llm: LLM, engine: Engines, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts in pieces, in a cache that holds no two whole requests: rows are given up, and computed again."""
    samplings = [dataclasses.replace(each, max_tokens=150) for each in MIXED]
    prompts = [prompt[:100] for prompt in prompts_of(llm, 20)]
    expected = alone(llm, prompts, samplings)
    preempted = count_preemptions(monkeypatch)
    with load(engine(ADAPT, STEER), 1, cache_tokens=512, prefill_chunk=32) as small:
        give(small, folders)
        assert together(small, prompts, samplings) == expected
    assert preempted[0]


def test_prefixes_are_shared_by_requests_of_one_adapter(llm: LLM, engine: Engines, folders: dict[str, Path]) -> None:
    half = dataclasses.replace(FIRST, adapter_scale=0.5)
    order = [FIRST, PLAIN, FIRST, SECOND, half, half, PLAIN]
    with load(engine(ADAPT, STEER), 1) as fresh:
        give(fresh, folders)
        prompt = (prompts_of(fresh)[2] * 40)[:384]  # three whole tiles
        done = [fresh.generate(prompt, sampling)[0] for sampling in order]
        fresh.load_adapter(folders["third"], "first")
        replaced = fresh.generate(prompt, FIRST)[0]
    reused = [each.reused_tokens for each in done]
    assert reused[:2] == [0, 0] and reused[3:5] == [0, 0] and replaced.reused_tokens == 0
    assert min(reused[2], reused[5], reused[6]) >= 256
    with load(engine(ADAPT, STEER), 1, prefix_reuse=False) as whole:
        give(whole, folders)
        assert [each.token_ids for each in done] == alone(whole, [prompt] * len(order), order)
        whole.load_adapter(folders["third"], "first")
        assert replaced.token_ids == alone(whole, [prompt], [FIRST])[0] != done[0].token_ids


def test_kvarn(engine: Engines, folders: dict[str, Path]) -> None:
    with load(engine(ADAPT, "kvarn", STEER, kv_bits=None), 1) as encoded:
        give(encoded, folders)
        prompts = [prompt[:300] for prompt in prompts_of(encoded, 40)]
        found = together(encoded, prompts, MIXED)
        assert found == alone(encoded, prompts, MIXED)
        assert found[0] != alone(encoded, prompts[:1], [PLAIN])[0]


def test_guesses_that_the_model_verifies(llm: LLM, engine: Engines, folders: dict[str, Path]) -> None:
    expected = together(llm, prompts_of(llm), MIXED)
    with load(engine(f"clp:heads={EXAMPLES / 'tiny-reasoner-clp'},verify=true", ADAPT, STEER), 1) as guessing:
        give(guessing, folders)
        assert together(guessing, prompts_of(guessing), MIXED) == expected


def test_loading_stalls_no_row(engine: Engines, folders: dict[str, Path]) -> None:
    """While adapters are loaded and dropped, every step still gives every row a token, the same as ever."""
    with load(engine(ADAPT, STEER), 1) as serving:
        give(serving, folders)
        long = dataclasses.replace(FIRST, max_tokens=300)
        prompt = prompts_of(serving)[0]
        expected = serving.generate(prompt, long)[0].token_ids
        sampled: list[int] = []
        serving.loop.observer = lambda timing: sampled.append(timing.sampled)
        handle = serving.submit(prompt, long)
        next(iter(handle))
        loads = 0
        while not handle.done and loads < 20:
            serving.drop_adapter("second")
            serving.load_adapter(folders["third"], "second")
            loads += 1
        assert handle.result().token_ids == expected and loads > 1
        # the observer may still see the last step of the request before
        assert len(sampled) in (300, 301) and set(sampled) == {1}, "no step without a token of the row"


def test_what_is_in_use_is_not_dropped(llm: LLM, folders: dict[str, Path]) -> None:
    gate = threading.Event()
    prompt = prompts_of(llm)[0]
    handle = llm.submit(prompt, FIRST, on_event=lambda event: gate.wait(20) and None)
    with pytest.raises(RequestError, match=r"got 'first' to drop, and 1 requests that have not ended use it"):
        threading.Timer(0.2, gate.set).start()
        llm.drop_adapter("first")
    assert handle.result().token_ids == llm.generate(prompt, FIRST)[0].token_ids
    llm.drop_adapter("first")
    with pytest.raises(RequestError, match=r"got 'first', expected one of the entries second"):
        llm.generate(prompt, FIRST)
    assert llm.load_adapter(folders["first"]) == "first"
    llm.load_adapter(folders["third"])
    with pytest.raises(RequestError, match="third"):
        llm.load_adapter(folders["first"], "fourth")
    llm.drop_adapter("third")


def test_an_engine_without_adapters(engine: Engines, folders: dict[str, Path]) -> None:
    with load(engine(), 1) as plain:
        for use in (
            lambda: plain.load_adapter(folders["first"]),
            lambda: plain.generate("1", FIRST),
            lambda: plain.adapters,
        ):
            with pytest.raises(RequestError, match="adapter"):
                use()
