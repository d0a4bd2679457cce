"""Tests of cache policies on a trained model: its tokens are those of transformers with everything evicted masked."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from enginewright.exporters.recipe import Recipe
from enginewright.runtime import LLM, Sampling, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.evaluation.problems import problem_of_size
from tests.support.exporters.fixtures import built_once
from tests.support.paths import EXAMPLES
from tests.support.runtime.sample_policies import Seen, extended, first_and_newest

pytestmark = [pytest.mark.native, pytest.mark.slow]

MODEL = EXAMPLES / "tiny-reasoner"
TILE = 128
POLICY, SEEN = first_and_newest(TILE, 1, 1)
LONG = Sampling(max_tokens=300, ignore_eos=True)


@pytest.fixture(autouse=True, scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with extended(tmp_path_factory.mktemp("extension")):
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_once(tmp_path_factory, MODEL, Recipe(kv_bits=32, max_batch=4))


@pytest.fixture(scope="module")
def evicting(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same engine with a policy in its manifest."""
    root = tmp_path_factory.mktemp("engine") / "evicting"
    shutil.copytree(plain, root)
    manifest = directory.load(root)
    cache = dataclasses.replace(manifest.cache, policy=POLICY)
    directory.save(dataclasses.replace(manifest, cache=cache), root)
    return root


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()


def masked_logits(model: PreTrainedModel, tokens: list[int], prompt: int, seen: Seen) -> np.ndarray:
    """Logits of a dense pass in which no token attends to what had been evicted before it."""
    mask = torch.full((1, 1, len(tokens), len(tokens)), -torch.inf)
    for position in range(len(tokens)):
        mask[0, 0, position, torch.from_numpy(seen(0, 0, position, prompt))] = 0
    with torch.no_grad():
        return np.asarray(model(torch.tensor([tokens]), attention_mask=mask).logits[0].numpy())


def prompts_of(llm: LLM) -> list[list[int]]:
    """Problems in the model's chat format, of which the look-ups are many tiles long."""
    rng = random.Random(5)
    sizes = (("arithmetic", 4), ("retrieval", 9), ("variables", 20), ("lists", 3))
    problems = [problem_of_size(kind, steps, rng) for kind, steps in sizes]
    return [llm.apply_chat_template([{"role": "user", "content": each.question}]) for each in problems]


def test_tokens_are_those_of_a_masked_model(evicting: Path, reference: PreTrainedModel) -> None:
    with load(evicting, 1, prefill_chunk=100) as llm:
        prompts = prompts_of(llm)
        assert max(map(len, prompts)) > 6 * TILE and min(map(len, prompts)) < TILE
        held: list[int] = []
        full = llm.loop.scheduler.snapshot().free_tiles
        llm.loop.observer = lambda _: held.append(full[0] - llm.loop.scheduler.snapshot().free_tiles[0])
        done = llm.generate(prompts, LONG)
        assert max(held) <= 4 * 2 * 3, "rows, heads, tiles: the budget of two, and one that fills up"
    for prompt, completion in zip(prompts, done, strict=True):
        tokens = [*prompt, *completion.token_ids]
        logits = masked_logits(reference, tokens[:-1], len(prompt), SEEN)[len(prompt) - 1 :]
        chosen = np.take_along_axis(logits, np.array(completion.token_ids)[:, None], axis=1)[:, 0]
        assert (chosen >= logits.max(axis=1) - 1e-3).all(), "float32 sums in another order"


def test_logits_of_a_text_are_those_of_a_masked_model(evicting: Path, reference: PreTrainedModel) -> None:
    with load(evicting, 1, prefill_chunk=100) as llm:
        text = [token for prompt in prompts_of(llm) for token in prompt][:900]
        wanted = masked_logits(reference, text, 0, SEEN)
        np.testing.assert_allclose(llm.logits(text), wanted, atol=1e-3)


def test_a_problem_within_the_budget_is_answered_as_without_a_policy(plain: Path, evicting: Path) -> None:
    with load(plain, 1) as whole, load(evicting, 1) as llm:
        short = [prompts_of(llm)[0], prompts_of(llm)[3]]
        limit = 3 * TILE - max(map(len, short))
        sampling = Sampling(max_tokens=limit, temperature=0.7, seed=3)
        wanted, got = whole.generate(short, sampling), llm.generate(short, sampling)
        assert [each.token_ids for each in got] == [each.token_ids for each in wanted]


def test_rows_do_not_depend_on_each_other(evicting: Path) -> None:
    sampling = Sampling(max_tokens=300, temperature=0.9, seed=1, ignore_eos=True)
    with load(evicting, 1) as llm:
        prompts = prompts_of(llm)
        together = [each.token_ids for each in llm.generate(prompts, sampling)]
        again = [llm.generate([prompt], sampling)[0] for prompt in prompts]
        assert [each.token_ids for each in again] == together
        reused = [each.reused_tokens for each in again]
        assert max(reused) >= TILE, "what a prompt begins with is shared"
        assert all(tokens <= 2 * TILE for tokens in reused), "up to the first eviction, at three tiles"
