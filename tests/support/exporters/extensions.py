"""Extensions for the length of a test: the package's doors are as before afterwards."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from enginewright.runtime.artifact.extension import FOLDERS, extend

SAMPLES = Path(__file__).parents[1] / "extension"
"""One module for each door of the exporters' sources and weights."""


@contextmanager
def extended(folder: Path) -> Iterator[None]:
    """Let the modules under `folder` stand next to the package's own until the context is left."""
    packages: dict[str, Any] = {FOLDERS[path.name]: None for path in folder.iterdir() if path.name in FOLDERS}
    before = {name: list(importlib.import_module(name).__path__) for name in packages}
    known = set(sys.modules)
    extend(folder)
    try:
        yield
    finally:
        for name, path in before.items():
            importlib.import_module(name).__path__[:] = path
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                parent, _, child = name.rpartition(".")
                delattr(sys.modules[parent], child)
                del sys.modules[name]
