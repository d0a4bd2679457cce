"""Tiny random models and engines built from them, each made once a session for all of its processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from enginewright.exporters.build import build
from enginewright.exporters.export import export
from enginewright.exporters.recipe import Recipe
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import Manifest
from tests.support.exporters.families import save_checkpoint
from tests.support.once import made_once

CheckpointMaker = Callable[..., Path]
EngineMaker = Callable[[Path, Recipe], tuple[Path, Manifest]]


def checkpoint_once(factory: pytest.TempPathFactory, family: str, **options: object) -> Path:
    """A family's checkpoint; keywords as of `save_checkpoint`."""
    key = repr(("checkpoint", family, sorted(options.items())))
    return made_once(factory, key, lambda root: save_checkpoint(family, root / family, **options)) / family


def exported_once(factory: pytest.TempPathFactory, model: Path, recipe: Recipe) -> Path:
    """An engine directory that no backend has built yet."""

    def make(root: Path) -> None:
        (root / model.name).mkdir()
        export(str(model), root / model.name, recipe)

    return made_once(factory, repr(("export", str(model), recipe)), make) / model.name


def built_once(factory: pytest.TempPathFactory, model: Path, recipe: Recipe) -> Path:
    """An engine for ONNX Runtime on the CPU."""

    def make(root: Path) -> None:
        build(str(model), root / model.name, recipe, "onnxruntime")

    return made_once(factory, repr(("build", str(model), recipe)), make) / model.name


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> CheckpointMaker:
    """Returns the directory of a family's checkpoint."""

    def make(family: str, **options: object) -> Path:
        return checkpoint_once(tmp_path_factory, family, **options)

    return make


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> EngineMaker:
    """Builds an engine of a checkpoint."""

    def make(model: Path, recipe: Recipe) -> tuple[Path, Manifest]:
        root = built_once(tmp_path_factory, model, recipe)
        return root, directory.load(root)

    return make
