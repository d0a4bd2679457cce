"""Tests of scaled rotary embeddings: the context that they allow, and the numbers of engines on both sides of a limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from enginewright.exporters.build import build
from enginewright.exporters.export import export
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.source.rope_scaling import describe_fixed, longest_context
from enginewright.runtime.errors import ExportError
from enginewright.runtime.loader import load
from tests.support.exporters.families import SIZES, make_model

NAMED = 64
THETA = {"rope_theta": 10000.0}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
HALF = SIZES["hidden_size"] // SIZES["num_attention_heads"] // 2
LONG = {"short_factor": [1.0] * HALF, "long_factor": [1.0 + 0.5 * i for i in range(HALF)]}

# family, settings, named context, context that scaling gives
CONTEXTS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "no scaling": ("llama", {"rope_type": "default"}, 64, 64),
    "a factor without scaling": ("llama", {"rope_type": "default", "factor": 4.0}, 64, 64),
    "linear": ("llama", {"rope_type": "linear", "factor": 4.0}, 64, 256),
    "dynamic": ("llama", {"rope_type": "dynamic", "factor": 2.5}, 64, 160),
    "yarn, length before scaling named": ("qwen2", {"rope_type": "yarn", "factor": 4.0}, 64, 256),
    "yarn, both lengths named": (
        "qwen2",
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        256,
        256,
    ),
    "yarn, named length rounded up": (
        "qwen3",
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        80,
        256,
    ),
    "llama3": (
        "llama",
        {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 64, **LLAMA3},
        512,
        512,
    ),
    "longrope": ("phi3", {"rope_type": "longrope", "original_max_position_embeddings": 64, **LONG}, 256, 256),
    "a factor of none": ("llama", {"rope_type": "linear", "factor": float("inf")}, 64, 64),
}


def config_of(family: str, rope: dict[str, Any], named: int) -> Any:
    """The config of a tiny model with scaled rotary embeddings."""
    sizes = {**SIZES, "max_position_embeddings": named, "rope_parameters": {**THETA, **rope}}
    if (original := rope.get("original_max_position_embeddings")) and family == "phi3":
        sizes["original_max_position_embeddings"] = original
    return AutoConfig.for_model(family, **sizes)


@pytest.mark.parametrize("case", CONTEXTS)
def test_scaling_gives_a_context(case: str) -> None:
    family, rope, named, expected = CONTEXTS[case]
    assert longest_context(config_of(family, rope, named)) == expected


def test_layers_with_a_window_do_not_limit_the_context() -> None:
    rope = {
        "sliding_attention": {"rope_type": "default", **THETA},
        "full_attention": {"rope_type": "linear", "factor": 8.0, **THETA},
    }
    config = AutoConfig.for_model("gemma3_text", **{**SIZES, "rope_parameters": rope})
    assert longest_context(config) == 8 * SIZES["max_position_embeddings"]


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_learned_positions_stay_limited(family: str) -> None:
    assert longest_context(AutoConfig.for_model(family, max_position_embeddings=40)) == 40


def save(family: str, rope: dict[str, Any], named: int, path: Path) -> Path:
    """Write a checkpoint whose attention spreads widely, so that positions matter."""
    config = config_of(family, rope, named)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    model.save_pretrained(path)
    return path


def test_a_context_beyond_the_scaled_one_is_refused(tmp_path: Path) -> None:
    model = save("llama", {"rope_type": "linear", "factor": 4.0}, NAMED, tmp_path / "model")
    with pytest.raises(ExportError, match="max_context: got 257, expected at most 256, which the model was made for"):
        build(str(model), tmp_path / "engine", Recipe(max_context=257), "onnxruntime")


@pytest.mark.slow
def test_the_named_context_stays_the_default(tmp_path: Path) -> None:
    model = save("llama", {"rope_type": "linear", "factor": 4.0}, NAMED, tmp_path / "model")
    (tmp_path / "engine").mkdir()
    manifest = export(str(model), tmp_path / "engine", Recipe())
    assert (manifest.limits.max_context, manifest.model.max_positions) == (NAMED, 4 * NAMED)


# settings, named context, --max-context, lengths of prompts with transformers' numbers, and of one with others
SCALED: dict[str, tuple[str, dict[str, Any], int, int, tuple[int, ...], int]] = {
    "linear": ("llama", {"rope_type": "linear", "factor": 4.0}, 64, 256, (7, 64, 65, 256), 0),
    "yarn": ("qwen2", {"rope_type": "yarn", "factor": 4.0}, 64, 256, (7, 64, 65, 256), 0),
    "llama3": (
        "llama",
        {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 64, **LLAMA3},
        64,
        256,
        (7, 64, 65, 256),
        0,
    ),
    "dynamic within": ("llama", {"rope_type": "dynamic", "factor": 4.0}, 64, 64, (7, 64), 0),
    "dynamic beyond": ("llama", {"rope_type": "dynamic", "factor": 4.0}, 64, 160, (160,), 40),
    "longrope within": ("phi3", CONTEXTS["longrope"][1], 256, 64, (7, 64), 0),
    "longrope beyond": ("phi3", CONTEXTS["longrope"][1], 256, 256, (65, 256), 40),
}


def logits_of(model: PreTrainedModel, tokens: list[int]) -> np.ndarray:
    """The logits of one prompt, from frequencies that no earlier prompt has changed."""
    with torch.no_grad():
        logits: np.ndarray = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    return logits


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("case", SCALED)
def test_engines_equal_transformers(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family, rope, named, context, same, other = SCALED[case]
    model = save(family, rope, named, tmp_path / "model")
    build(str(model), tmp_path / "engine", Recipe(kv_bits=32, max_context=context), "onnxruntime", trial="logits")
    assert ("rotary frequencies" in capsys.readouterr().err) == bool(other), "the build says where numbers differ"
    ids = np.random.default_rng(0).integers(3, SIZES["vocab_size"], context).tolist()
    with load(tmp_path / "engine", threads=2) as llm:
        assert llm.manifest.limits.max_context == context <= llm.manifest.model.max_positions
        for length in (*same, *([other] if other else [])):
            own = load_reference(str(model), ())
            error = np.abs(llm.logits(ids[:length]) - logits_of(own, ids[:length])).max()
            assert (error < 5e-5) == (length != other), (length, error)
        fixed = load_reference(str(model), (), max_context=context)
        assert np.abs(llm.logits(ids[:40]) - logits_of(fixed, ids[:40])).max() < 5e-5, "what `check` compares with"


def test_the_description_names_the_limit() -> None:
    config = config_of("llama", {"rope_type": "dynamic", "factor": 4.0}, 64)
    assert describe_fixed(config, 64) == ""
    assert "(dynamic) of every request are those of 128 tokens" in describe_fixed(config, 128)
    assert "--max-context 64" in describe_fixed(config, 128)
    assert describe_fixed(make_model("llama").config, 10**6) == ""
