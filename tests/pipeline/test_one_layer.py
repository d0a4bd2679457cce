"""The whole way from a checkpoint to tokens, on a model of one layer: what the quick suite has of each kind of engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from enginewright.exporters.methods.clp.method import Config as ClpConfig
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.parity import compare
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.exporters.source.reference import load_reference
from enginewright.runtime import Sampling, load
from tests.support.exporters.clp_sets import random_set
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker

pytestmark = pytest.mark.native

PLAIN = Recipe(kv_bits=32, max_batch=4)


@pytest.mark.parametrize("recipe", [PLAIN, Recipe(plugins="none", max_batch=4)], ids=["plugins", "standard_ops"])
def test_an_engine_equals_its_model(recipe: Recipe, checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    model = checkpoint("qwen3", num_hidden_layers=1)
    root, _ = engine(model, recipe)
    with load(root, threads=1, prefill_chunk=64) as llm:
        parity = compare(llm, load_reference(str(model), ()), new_tokens=8)
    assert parity.max_error < 1e-5  # float32 sums in another order
    assert not parity.unexplained


def test_the_first_tile_of_an_encoded_cache_is_exact(checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    model = checkpoint("qwen3", num_hidden_layers=1)
    root, manifest = engine(model, Recipe(apply=(parse_method("kvarn"),), max_batch=4))
    tokens = np.random.default_rng(0).integers(3, 250, 100).tolist()
    with torch.no_grad():
        expected = load_reference(str(model), ())(input_ids=torch.tensor([tokens])).logits[0].numpy()
    assert manifest.cache.kind == "kvarn"
    with load(root, threads=1) as llm:
        np.testing.assert_allclose(llm.logits(tokens), expected, atol=1e-3)  # keys and values are halves


@pytest.mark.slow
def test_verified_guesses_change_nothing(checkpoint: CheckpointMaker, engine: EngineMaker, tmp_path: Path) -> None:
    model = checkpoint("qwen3", num_hidden_layers=1)
    heads = Applied("clp", ClpConfig(heads=str(random_set(model, tmp_path / "heads")), tau=0.01, verify=True))
    answers = []
    for recipe in (PLAIN, Recipe(kv_bits=32, max_batch=4, apply=(heads,))):
        root, _ = engine(model, recipe)
        with load(root, threads=1) as llm:
            answers.append(llm.generate([[5, 6, 7], [9] * 40], Sampling(max_tokens=30, ignore_eos=True)))
    plain, guessed = answers
    assert [each.token_ids for each in guessed] == [each.token_ids for each in plain]
    assert all(each.guessed_tokens > 0 for each in guessed)
