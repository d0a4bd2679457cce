"""Tests of scaled rotations: the logits of models with each kind, from the keys and tensors that llama.cpp writes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.reference import load_reference
from enginewright.runtime.errors import UnsupportedError
from tests.support.exporters.gguf_files import make_model, write_gguf

TOKENS = torch.arange(3, 90)[None]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
YARN_KEYS = {"type": "yarn", "factor": 4.0, "original_context_length": 64}


def difference(
    family: str, rotation: dict[str, Any], path: Path, metadata: dict[str, Any], **tensors: np.ndarray
) -> float:
    """The largest difference of logits of a model with that rotation and of its file with those metadata and tensors."""
    model = make_model(family, rope_parameters=rotation)
    files = {f"{name}.weight": values.astype(np.float32) for name, values in tensors.items()}
    file = write_gguf(model, path / "m.gguf", metadata=metadata, tensors=files)
    assert open_checkpoint(str(file)).unused.parts == ()
    with torch.no_grad():
        got, expected = load_reference(str(file), ())(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits
    return float((got - expected).abs().max())


def keys(family: str, values: dict[str, Any]) -> dict[str, Any]:
    """The keys of a scaling."""
    return {f"{family}.rope.scaling.{name}": value for name, value in values.items()}


def test_linear(tmp_path: Path) -> None:
    rotation = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
    assert difference("llama", rotation, tmp_path, keys("llama", {"type": "linear", "factor": 4.0})) == 0


def test_linear_by_the_old_key(tmp_path: Path) -> None:
    rotation = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    assert difference("llama", rotation, tmp_path, {"llama.rope.scale_linear": 2.0}) == 0


@pytest.mark.parametrize(
    ("settings", "more"),
    [({}, {}), ({"beta_fast": 16.0, "beta_slow": 2.0}, {"yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0})],
)
def test_yarn(settings: dict[str, Any], more: dict[str, Any], tmp_path: Path) -> None:
    rotation = YARN | settings | {"rope_theta": 5000.0}
    assert difference("qwen2", rotation, tmp_path, keys("qwen2", YARN_KEYS | more)) == 0


def test_the_strength_of_yarn_multiplies_its_own(tmp_path: Path) -> None:
    rotation = YARN | {"rope_theta": 5000.0, "attention_factor": 1.5 * (0.1 * math.log(4) + 1)}
    assert difference("qwen2", rotation, tmp_path, keys("qwen2", YARN_KEYS | {"attn_factor": 1.5})) == 0


def test_the_layers_with_a_window_are_not_scaled(tmp_path: Path) -> None:
    rotation = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 9000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
    }
    metadata = keys("gemma3", {"type": "linear", "factor": 8.0}) | {"gemma3.rope.freq_base_swa": 700.0}
    assert difference("gemma3_text", rotation, tmp_path, metadata) == 0


def llama3_factors(width: int, base: float) -> np.ndarray:
    """The factors that llama.cpp's converter writes for LLAMA3."""
    lengths = 2 * math.pi * base ** (np.arange(0, width, 2) / width)
    original, factor = LLAMA3["original_max_position_embeddings"], LLAMA3["factor"]
    smooth = (original / lengths - 1.0) / (4.0 - 1.0)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(lengths < original / 4.0, 1.0, np.where(lengths > original / 1.0, factor, between))


def test_factors_of_llama_3(tmp_path: Path) -> None:
    factors = llama3_factors(16, 5000.0)
    assert len(set(factors.tolist())) > 3
    assert difference("llama", LLAMA3 | {"rope_theta": 5000.0}, tmp_path, {}, rope_freqs=factors) < 1e-4


def test_factors_for_long_and_short_texts(tmp_path: Path) -> None:
    long, short = np.linspace(1, 6, 8), np.linspace(1, 1.5, 8)
    rotation = {
        "rope_type": "longrope",
        "long_factor": long.tolist(),
        "short_factor": short.tolist(),
        "original_max_position_embeddings": 64,
        "rope_theta": 5000.0,
        "attention_factor": 1.25,
    }
    metadata = keys("phi3", {"original_context_length": 64, "attn_factor": 1.25})
    tensors = {"rope_factors_long": long, "rope_factors_short": short}
    assert difference("phi3", rotation, tmp_path, metadata, **tensors) < 1e-4


def test_factors_for_long_texts_alone(tmp_path: Path) -> None:
    file = write_gguf(
        make_model("phi3"), tmp_path / "m.gguf", tensors={"rope_factors_long.weight": np.ones(8, np.float32)}
    )
    with pytest.raises(UnsupportedError, match=r"got no rope_factors_short.weight, expected both"):
        open_checkpoint(str(file))
