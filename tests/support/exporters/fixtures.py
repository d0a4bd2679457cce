"""The types of the fixtures in tests/exporters/conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from enginewright.exporters.recipe import Recipe
from enginewright.runtime.artifact.manifest import Manifest

CheckpointMaker = Callable[[str], Path]
EngineMaker = Callable[[Path, Recipe], tuple[Path, Manifest]]
