"""The numbered examples run on an engine of the checkpoint that the repository carries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from enginewright.exporters.build_command import build
from enginewright.exporters.recipe import Recipe

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("0*.py"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("engine") / "tiny-arith"
    build(str(ROOT / "examples/tiny-arith"), root, Recipe(), "onnxruntime")
    return root


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a child process that imports this checkout, installed or not."""
    home = tmp_path_factory.mktemp("import")
    (home / "enginewright").symlink_to(ROOT)
    return {**os.environ, "PYTHONPATH": str(home)}


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example: str, engine: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, str(ROOT / "examples" / example), str(engine)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not done.stderr
