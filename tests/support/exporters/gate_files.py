"""Random files of gates, of tokens and of heads, for engines that evict by them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from transformers import PreTrainedConfig

from enginewright.exporters.methods.evict.head_gates import HeadGates
from enginewright.exporters.methods.measured_file import SourceModel
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.source.checkpoint import open_checkpoint

INNER = 16  # of a gate's hidden layer


def gate_tensors(config: PreTrainedConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """TRIM-KV's gates of each layer with random numbers, by the authors' names."""
    rng, size, heads = np.random.default_rng(seed), config.hidden_size, config.num_key_value_heads
    found = {}
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}.self_attn.retention_gate."
        found[f"{name}linear1.weight"] = rng.standard_normal((INNER, size)) * size**-0.5
        found[f"{name}linear1.bias"] = rng.standard_normal(INNER) * 0.1
        found[f"{name}linear2.weight"] = rng.standard_normal((heads, INNER))
        found[f"{name}bias"] = np.full(heads, 4.0)
    return {name: value.astype(np.float32) for name, value in found.items()}


def write_token_gates(model: Path, path: Path, seed: int = 0) -> Path:
    """Write gates for a checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(gate_tensors(open_checkpoint(str(model)).config, seed), path)
    return path


def write_head_gates(model: Path, path: Path, gates: Sequence[Sequence[float] | None]) -> Path:
    """Write the gates of a checkpoint's heads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = open_checkpoint(str(model))
    own = tuple(None if each is None else tuple(each) for each in gates)
    HeadGates(model=SourceModel(name="random", sha256=hash_of(checkpoint)), gates=own).write(path)
    return path


def changed_json(path: Path, **changes: object) -> Path:
    """Write other values into a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path
