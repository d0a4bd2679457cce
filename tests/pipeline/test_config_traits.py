"""Tests of settings that public bug reports of other servers are about, and that are right here: they are to stay so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from enginewright.exporters.build import build
from enginewright.exporters.parity import Parity, compare
from enginewright.exporters.recipe import Recipe, parse_weights
from enginewright.exporters.source.reference import load_reference
from enginewright.runtime.loader import load
from tests.support.exporters.families import SIZES

pytestmark = [pytest.mark.native, pytest.mark.slow]

FLOAT = Recipe(kv_bits=32)
TRAITS: dict[str, tuple[str, dict[str, Any]]] = {  # family, and what its config has beside SIZES
    "rotary over a part of the head": (
        "glm",
        {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "scaled logits, embeddings and residuals": (
        "granite",
        {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1},
    ),
    "a factor on logits": ("cohere", {"logit_scale": 0.25}),
    "heads of 18": ("llama", {"hidden_size": 72}),
    "heads of 24": ("llama", {"head_dim": 24}),
    "a vocabulary padded to a multiple of 128": ("qwen2", {"vocab_size": 384}),
    "a context of ten million tokens": ("llama", {"max_position_embeddings": 10_485_760}),
}
LEGACY = {  # spellings of older releases
    "rope_scaling with type": {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "rope_theta alone": {"rope_theta": 5000.0, "rope_scaling": None},
}


def make(root: Path, family: str, changes: dict[str, Any]) -> Path:
    """Write a random checkpoint."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, "num_hidden_layers": 1, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(root)
    return root


def parity(model: Path, root: Path, recipe: Recipe) -> Parity:
    """Build an engine and compare it with the checkpoint."""
    build(str(model), root, recipe, "onnxruntime", trial="none")
    with load(root, threads=2, cache_tokens=2048) as llm:
        return compare(llm, load_reference(str(model), ()), new_tokens=3, prompt_lengths=(1, 7, 130))


@pytest.mark.parametrize("trait", TRAITS)
def test_a_trait_of_a_config(trait: str, tmp_path: Path) -> None:
    family, changes = TRAITS[trait]
    found = parity(make(tmp_path / "model", family, changes), tmp_path / "engine", FLOAT)
    assert found.max_error < 1e-5 * max(1.0, found.logit_range) and not found.unexplained


@pytest.mark.parametrize("spelling", LEGACY)
def test_a_spelling_of_an_older_release(spelling: str, tmp_path: Path) -> None:
    model = make(tmp_path / "model", "llama", {})
    path = model / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    path.write_text(json.dumps({**config, **LEGACY[spelling]}))
    found = parity(model, tmp_path / "engine", FLOAT)
    assert found.max_error < 1e-5 and not found.unexplained


def test_tensors_of_several_types_in_one_file(tmp_path: Path) -> None:
    model = make(tmp_path / "model", "qwen3", {})
    path = model / "model.safetensors"
    types = (torch.float32, torch.float16, torch.bfloat16)
    tensors = load_file(path)
    mixed = {name: tensor.to(types[i % len(types)]) for i, (name, tensor) in enumerate(sorted(tensors.items()))}
    save_file(mixed, path, metadata={"format": "pt"})
    found = parity(model, tmp_path / "engine", FLOAT)
    assert found.max_error < 1e-5 and not found.unexplained


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("weights", "least"), [("float32", 0.999999), ("int8", 0.999), ("int4", 0.9)])
def test_heads_that_are_tied_and_that_are_not_in_every_storage(
    weights: str, least: float, tied: bool, tmp_path: Path
) -> None:
    model = make(tmp_path / "model", "llama", {"tie_word_embeddings": tied})
    found = parity(model, tmp_path / "engine", Recipe(kv_bits=32, weights=parse_weights(weights)))
    assert found.correlation > least
