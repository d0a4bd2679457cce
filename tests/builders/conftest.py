"""Fixtures of the builders' tests: a graph that is exported once and that every test builds or copies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from enginewright.exporters.recipe import Recipe
from tests.support.exporters.fixtures import checkpoint_once, exported_once

torch.set_num_threads(1)  # the models are tiny: threads that wait for each other cost more than they share


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer, biases and a tied output projection."""
    return checkpoint_once(tmp_path_factory, "qwen2", num_hidden_layers=1)


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine directory that no backend has built yet."""
    return exported_once(tmp_path_factory, checkpoint, Recipe(kv_bits=32))
