"""Real models for tests marked `real`: fetched by `examples/06_real_model.py`, and kept where it keeps them.

A test that wants one is skipped where it cannot be had, with the reason. With ENGINEWRIGHT_REQUIRE=real it fails.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.paths import EXAMPLES


def load_example() -> ModuleType:
    """The module of the example, whose name no import statement can have."""
    spec = importlib.util.spec_from_file_location("real_model_example", EXAMPLES / "06_real_model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


_EXAMPLE = load_example()
_FOLDER: Path = (
    _EXAMPLE.cache_folder()
)  # the machine's, as long as tests are collected; then they have caches of their own


def real_model(name: str) -> Path:
    """The GGUF file of a model, `smollm2` or `gemma3`; skips the test if the machine cannot fetch it."""
    found = _fetched(name)
    if isinstance(found, Path):
        return found
    required = "real" in os.environ.get("ENGINEWRIGHT_REQUIRE", "").split(",")
    (pytest.fail if required else pytest.skip)(f"needs {name}: {found}")


@functools.cache
def _fetched(name: str) -> Path | str:
    """The file, or why there is none; asked once a process."""
    try:
        path: Path = _EXAMPLE.fetch(_EXAMPLE.MODELS[name], _FOLDER)
    except (_EXAMPLE.FetchError, OSError) as error:
        return str(error)
    return path
