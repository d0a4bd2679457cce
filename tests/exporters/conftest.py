"""Fixtures of the exporters' tests: tiny random checkpoints, made once a session, and engines built from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe
from enginewright.runtime.artifact.manifest import Manifest
from tests.support.exporters.families import save_checkpoint
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker

torch.set_num_threads(1)  # the models are tiny: threads that wait for each other cost more than they share


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> CheckpointMaker:
    """Return the directory of a family's checkpoint."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("checkpoints") / family
            save_checkpoint(family, made[family])
        return made[family]

    return make


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> EngineMaker:
    """Build an engine of a checkpoint; the same recipe is built once."""
    made: dict[tuple[Path, Recipe], tuple[Path, Manifest]] = {}

    def make(model: Path, recipe: Recipe) -> tuple[Path, Manifest]:
        if (model, recipe) not in made:
            root = tmp_path_factory.mktemp("engines") / model.name
            made[model, recipe] = root, build(str(model), root, recipe, "onnxruntime")
        return made[model, recipe]

    return make
