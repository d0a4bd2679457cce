"""Tests of a model's own generation settings from its files to the engine's tokens: they are those of `model.generate`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, set_seed

from enginewright.exporters.build import build
from enginewright.exporters.methods.clp.method import Config as ClpConfig
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.parity import compare
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.source.checkpoint import GENERATION, open_checkpoint
from enginewright.exporters.source.generation.defaults import read_defaults
from enginewright.runtime import LLM, ArtifactError, Sampling, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.cli import main
from tests.support.exporters.clp_sets import random_set
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker

pytestmark = pytest.mark.native

PLAIN = Recipe(kv_bits=32, max_batch=4)
PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 6], [9]]
NEW = 24
Settings = dict[str, Any]

# Each from the tokens that plain greedy decoding gives after the first prompt.
SETTINGS: dict[str, Callable[[list[int]], Settings]] = {
    "repetition_penalty": lambda plain: {"repetition_penalty": 1.4},
    "suppress_tokens": lambda plain: {"suppress_tokens": [plain[0], plain[3]]},
    "begin_suppress_tokens": lambda plain: {"begin_suppress_tokens": [plain[0]]},
    "bad_words_ids": lambda plain: {"bad_words_ids": [plain[0:2], [plain[4]]]},
    "no_repeat_ngram_size": lambda plain: {"no_repeat_ngram_size": 2},
    "sequence_bias": lambda plain: {"sequence_bias": [[plain[0:2], -20.0], [[17], 1.5]]},
    "eos_token_id": lambda plain: {"eos_token_id": [plain[4], 2]},
    "min_new_tokens": lambda plain: {"eos_token_id": plain[4], "min_new_tokens": 9},
    "min_length": lambda plain: {"eos_token_id": plain[4], "min_length": 15},
    "exponential_decay_length_penalty": lambda plain: {
        "eos_token_id": 33,
        "sequence_bias": [[[33], 1.0]],
        "exponential_decay_length_penalty": [3, 1.3],
    },
    "max_new_tokens": lambda plain: {"max_new_tokens": 5, "max_length": 40},
    "max_length": lambda plain: {"max_length": 12},
    "greedy_despite_rules": lambda plain: {"do_sample": False, "temperature": 0.7, "top_k": 3, "top_p": 0.5},
    "together": lambda plain: {
        "eos_token_id": [plain[4]],
        "min_new_tokens": 6,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "suppress_tokens": [plain[1]],
        "begin_suppress_tokens": [plain[0]],
        "bad_words_ids": [plain[2:4]],
        "sequence_bias": [[[plain[5]], 0.5]],
        "max_new_tokens": 20,
    },
}


@pytest.fixture(scope="module")
def model(checkpoint: CheckpointMaker) -> Path:
    """The checkpoint; its logits spread as a trained model's."""
    return checkpoint("qwen3", num_hidden_layers=1, gain=2.0)


@pytest.fixture(scope="module")
def reference(model: Path) -> PreTrainedModel:
    """The model in transformers."""
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def plain(reference: PreTrainedModel) -> list[int]:
    """The tokens of plain greedy decoding after the first prompt."""
    return generate(reference, PROMPTS[0], {"eos_token_id": None})


def generate(reference: PreTrainedModel, prompt: list[int], settings: Settings) -> list[int]:
    """The tokens that transformers gives with these settings as the model's own; NEW of them where they name no number."""
    reference.generation_config = GenerationConfig(**{"eos_token_id": 2, "pad_token_id": 0, **settings})
    limits = {} if {"max_length", "max_new_tokens"} & settings.keys() else {"max_new_tokens": NEW}
    tokens = reference.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **limits)
    return tokens[0, len(prompt) :].tolist()


def with_settings(model: Path, engine: Path, settings: Settings, root: Path) -> Path:
    """A copy of the engine with the defaults that the checkpoint would give it, had it these settings."""
    shutil.copytree(model, root / "model")
    (root / "model" / GENERATION).write_text(json.dumps({"eos_token_id": 2, **settings}))
    shutil.copytree(engine, root / "engine")
    manifest = directory.load(root / "engine")
    ends = settings.get("eos_token_id", 2)
    ends = tuple(ends) if isinstance(ends, list) else (ends,)
    checkpoint = open_checkpoint(str(root / "model"))
    defaults = read_defaults(checkpoint, ends, has_tokenizer=False)
    assert not checkpoint.unused.parts
    described = dataclasses.replace(manifest.model, eos_token_ids=ends)
    manifest = dataclasses.replace(manifest, model=described, generation=defaults)
    directory.save(manifest, root / "engine")
    return root / "engine"


def answer(llm: LLM, settings: Settings) -> list[list[int]]:
    """The engine's tokens after both prompts, which run together; a request names nothing but a number where it must."""
    limits = {} if {"max_length", "max_new_tokens"} & settings.keys() else {"max_tokens": NEW}
    return [list(each.token_ids) for each in llm.generate(PROMPTS, Sampling(**limits))]


@pytest.mark.parametrize("name", SETTINGS)
def test_greedy_tokens_are_those_of_transformers(
    name: str, model: Path, reference: PreTrainedModel, plain: list[int], engine: EngineMaker, tmp_path: Path
) -> None:
    settings = SETTINGS[name](plain)
    root = with_settings(model, engine(model, PLAIN)[0], settings, tmp_path)
    expected = [generate(reference, prompt, settings) for prompt in PROMPTS]
    with load(root, threads=1) as llm:
        assert answer(llm, settings) == expected
    if name != "greedy_despite_rules":
        assert expected[0] != plain, "the setting acts"


def test_a_request_with_other_options_does_not_change_its_neighbours(
    model: Path, plain: list[int], engine: EngineMaker, tmp_path: Path
) -> None:
    root = with_settings(
        model, engine(model, PLAIN)[0], {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2}, tmp_path
    )
    neutral = Sampling(max_tokens=NEW, model_defaults=False, ignore_eos=True)
    off = Sampling(max_tokens=NEW, repetition_penalty=1, logits_processors={"no_repeat_ngram": None}, ignore_eos=True)
    with load(root, threads=1) as llm:
        (alone,) = llm.generate(PROMPTS[:1], Sampling(max_tokens=NEW))
        first, second, third = llm.generate(PROMPTS[:1] * 3, [neutral, Sampling(max_tokens=NEW), off])
    assert list(first.token_ids) == list(third.token_ids) == plain
    assert second.token_ids == alone.token_ids != first.token_ids


@pytest.mark.slow
def test_drafts_are_judged_with_the_models_defaults(
    model: Path, reference: PreTrainedModel, plain: list[int], engine: EngineMaker, tmp_path: Path
) -> None:
    heads = Applied("clp", ClpConfig(heads=str(random_set(model, tmp_path / "heads")), tau=0.01, verify=True))
    settings = SETTINGS["together"](plain)
    guessing, _ = engine(model, Recipe(kv_bits=32, max_batch=4, apply=(heads,)))
    with load(with_settings(model, guessing, settings, tmp_path), threads=1) as llm:
        assert answer(llm, settings) == [generate(reference, prompt, settings) for prompt in PROMPTS]


def test_a_model_that_samples_draws_what_transformers_may_draw(
    model: Path, reference: PreTrainedModel, plain: list[int], engine: EngineMaker, tmp_path: Path
) -> None:
    settings = {"do_sample": True, "temperature": 2.5, "top_k": 12, "top_p": 0.9, "typical_p": 0.8, "max_new_tokens": 1}
    set_seed(0)
    theirs = {generate(reference, PROMPTS[0], settings)[0] for _ in range(300)}
    with load(with_settings(model, engine(model, PLAIN)[0], settings, tmp_path), threads=1) as llm:
        seeded = [Sampling(seed=seed) for seed in range(300)]
        ours = {each.token_ids[0] for each in llm.generate(PROMPTS[:1] * 300, seeded)}
        (greedy,) = llm.generate(PROMPTS[0], Sampling(temperature=0))
    assert ours == theirs and len(ours) > 2
    assert list(greedy.token_ids) == plain[:1]


def test_comparing_an_engine_with_its_model_leaves_the_models_settings_aside(
    model: Path, reference: PreTrainedModel, plain: list[int], engine: EngineMaker, tmp_path: Path
) -> None:
    root = with_settings(model, engine(model, PLAIN)[0], SETTINGS["together"](plain), tmp_path)
    with load(root, threads=1, prefill_chunk=64) as llm:
        parity = compare(llm, reference, new_tokens=12, prompt_lengths=(9, 20))
    assert all(each.matched == each.wanted == 12 for each in parity.greedy)


@pytest.mark.slow
def test_a_build_keeps_the_settings_and_names_what_it_does_not_use(
    model: Path, reference: PreTrainedModel, plain: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = SETTINGS["together"](plain)
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / GENERATION).write_text(json.dumps({**settings, "num_beams": 4, "mystery": 1}))
    build(str(tmp_path / "model"), tmp_path / "engine", PLAIN, "onnxruntime")
    told = capsys.readouterr().err
    assert "generation_config.json: num_beams: not used: an engine follows one text" in told
    assert "generation_config.json: mystery: not used: this version does not know the setting" in told
    with load(tmp_path / "engine", threads=1) as llm:
        assert answer(llm, settings) == [generate(reference, prompt, settings) for prompt in PROMPTS]
    assert main(["inspect", str(tmp_path / "engine")]) == 0
    shown = capsys.readouterr().out
    assert "  defaults  repetition_penalty 1.2, max_tokens 20, logits_processors {" in shown


def test_defaults_that_cannot_be_served_are_refused_when_the_engine_is_loaded(
    model: Path, engine: EngineMaker, tmp_path: Path
) -> None:
    root = with_settings(model, engine(model, PLAIN)[0], {"suppress_tokens": [3]}, tmp_path)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["generation"]["logits_processors"] = {"suppress_tokens": {"tokens": [250]}}
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"generation: .*suppress_tokens.*got token id 250.*build the engine again"):
        load(root, threads=1)
