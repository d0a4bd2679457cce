"""The numbered examples run on an engine of the checkpoint that the repository carries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from enginewright.exporters.build_command import build
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime import Sampling, load

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
def test_the_checkpoint_adds(engine: Path) -> None:
    with load(engine, threads=1) as llm:
        answer = llm.chat([{"role": "user", "content": "What is 47 + 385?"}], Sampling(max_tokens=200))
    assert answer.text.endswith("Answer: 432.") and answer.finish_reason == "stop"


@pytest.mark.native
@pytest.mark.slow
def test_the_adapter_teaches_a_new_order(engine: Path, tmp_path: Path) -> None:
    adapter = parse_method(f"lora:path={ROOT / 'examples/tiny-arith-lora'},weight=1.0")
    build(str(ROOT / "examples/tiny-arith"), tmp_path / "engine", Recipe(apply=(adapter,)), "onnxruntime")
    question = [{"role": "user", "content": "Sort 31, 94, 15 from large to small."}]
    answers = []
    for root in (engine, tmp_path / "engine"):
        with load(root, threads=1) as llm:
            answers.append(llm.chat(question, Sampling(max_tokens=200)).text.rpartition("Answer: ")[2])
    assert answers == ["15, 31, 94.", "94, 31, 15."]


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example: str, engine: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, str(ROOT / "examples" / example), str(engine)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not done.stderr
