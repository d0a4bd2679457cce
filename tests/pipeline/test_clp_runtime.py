"""Tests of engines that emit several tokens a step: with checked guesses they answer exactly as plain engines do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from enginewright.exporters.build import build
from enginewright.exporters.methods.clp.method import Config
from enginewright.exporters.methods.kvarn import Config as KVarNConfig
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.recipe import Recipe
from enginewright.runtime import Completion, Sampling, load
from tests.support.exporters.clp_sets import random_set
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker

KVARN = Applied("kvarn", KVarNConfig(k_bits=4, v_bits=4))
SAMPLINGS = [
    Sampling(max_tokens=150, ignore_eos=True),
    Sampling(max_tokens=80, temperature=0.8, seed=3, ignore_eos=True),
    Sampling(max_tokens=150, ignore_eos=True),
    Sampling(max_tokens=60, repetition_penalty=1.3, ignore_eos=True),
]


def answers(root: Path) -> list[Completion]:
    """An engine's answers to four prompts in flight together, two of which do not decode greedily."""
    rng = np.random.default_rng(2)
    prompts = [rng.integers(3, 250, n).tolist() for n in (5, 140, 33, 60)]
    with load(root, threads=1, prefill_chunk=128) as llm:
        return llm.generate(prompts, SAMPLINGS)


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("cache", ["paged", "kvarn"])
def test_checked_guesses_change_nothing(
    cache: str, checkpoint: CheckpointMaker, engine: EngineMaker, tmp_path: Path
) -> None:
    model, others = checkpoint("qwen3"), (KVARN,) if cache == "kvarn" else ()
    heads = random_set(model, tmp_path / "heads")
    method = Applied("clp", Config(heads=str(heads), tau=0.01, verify=True))
    build(str(model), tmp_path / "engine", Recipe(apply=(*others, method), max_batch=4), "onnxruntime")
    plain, _ = engine(model, Recipe(apply=others, max_batch=4))
    expected, got = answers(plain), answers(tmp_path / "engine")
    assert [c.token_ids for c in got] == [c.token_ids for c in expected]
    assert [bool(c.guessed_tokens) for c in got] == [True, False, True, True], "all but the one that samples"
    assert all(0 <= c.agreed_tokens <= c.guessed_tokens for c in got)


@pytest.mark.native
@pytest.mark.slow
def test_unchecked_guesses_stand(checkpoint: CheckpointMaker, engine: EngineMaker, tmp_path: Path) -> None:
    """Every step's first token is the model's own choice after all tokens so far, those guessed included."""
    model = checkpoint("qwen3")
    heads = random_set(model, tmp_path / "heads")
    method = Applied("clp", Config(heads=str(heads), tau=0.01))
    build(str(model), tmp_path / "engine", Recipe(apply=(method,), max_batch=4, kv_bits=32), "onnxruntime")
    plain, _ = engine(model, Recipe(kv_bits=32))
    with load(tmp_path / "engine", threads=1) as llm:
        got = llm.generate([[5, 6, 7]], Sampling(max_tokens=60, ignore_eos=True))[0]
    with load(plain, threads=1) as llm:
        own = llm.logits([5, 6, 7, *got.token_ids])[2:-1].argmax(-1)
    differ = int((own != np.array(got.token_ids)).sum())
    assert got.guessed_tokens > 0
    assert got.guessed_tokens - got.agreed_tokens <= differ <= got.guessed_tokens - got.agreed_tokens + 2
