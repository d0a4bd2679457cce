"""Fixtures of the builders' tests: a graph that is exported once and that every test builds or copies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from enginewright.exporters.export import export
from enginewright.exporters.recipe import Recipe
from tests.support.exporters.families import save_checkpoint

torch.set_num_threads(1)  # the models are tiny: threads that wait for each other cost more than they share


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer, biases and a tied output projection."""
    path = tmp_path_factory.mktemp("checkpoint") / "qwen2"
    save_checkpoint("qwen2", path, num_hidden_layers=1)
    return path


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine directory that no backend has built yet."""
    root = tmp_path_factory.mktemp("exported")
    export(str(checkpoint), root, Recipe(kv_bits=32))
    return root
