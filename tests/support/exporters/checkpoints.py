"""Checkpoints on disk that a test may damage, and what the exporter reads of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.formats.safetensors import INDEX, WEIGHTS
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import build_skeleton
from tests.support.exporters.families import make_model
from tests.support.exporters.fixtures import CheckpointMaker


def edit_config(model: Path, **changes: object) -> None:
    """Set keys of config.json."""
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a checkpoint of one file."""
    tensors = load_file(model / WEIGHTS)
    change(tensors)
    save_file(tensors, model / WEIGHTS, {"format": "pt"})


def truncate(path: Path, keep: int) -> None:
    """Cut the file off after `keep` bytes."""
    path.write_bytes(path.read_bytes()[:keep])


@pytest.fixture
def model(checkpoint: CheckpointMaker, tmp_path: Path) -> Path:
    """A copy of a checkpoint in one file, to be damaged."""
    return Path(shutil.copytree(checkpoint("qwen2"), tmp_path / "model"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint in several files, to be damaged."""
    make_model("qwen2").save_pretrained(tmp_path / "model", max_shard_size="100KB")
    return tmp_path / "model"


def shards(model: Path) -> list[Path]:
    """The weight files of a sharded checkpoint."""
    return sorted(model.glob("model-*.safetensors"))


def bind(model: Path) -> dict[str, torch.Tensor]:
    """Every parameter as the exporter reads it."""
    opened = open_checkpoint(str(model))
    skeleton = build_skeleton(opened.config, attention="eager", max_context=64)
    return {name: torch.from_numpy(w.load()) for name, w in bind_parameters(opened, skeleton.model).items()}


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Exactly the same tensors, float32."""
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name]), name


def add_tensors(file: Path, **tensors: torch.Tensor) -> None:
    """Write tensors into a file that there is, besides those that it has."""
    save_file({**load_file(file), **tensors}, file, {"format": "pt"})


def edit_index(model: Path, change: Callable[[dict[str, str]], object]) -> None:
    """Change the index's map from tensor to file."""
    raw = json.loads((model / INDEX).read_text())
    change(raw["weight_map"])
    (model / INDEX).write_text(json.dumps(raw))
