"""Changed manifests: `inspect` and `load` take them or name what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.runtime import loader
from enginewright.runtime.artifact.directory import MANIFEST
from enginewright.runtime.backends.onnxruntime import backend
from tests.support.fuzzing.attempts import attempt, attempt_command
from tests.support.fuzzing.mutations import change_text, changed
from tests.support.fuzzing.read_corpus import read_corpus
from tests.support.fuzzing.rounds import draws, rounds
from tests.support.runtime.conditioned_engines import add_conditions, add_entries, steering
from tests.support.runtime.tiny_engine import write_engine

pytestmark = pytest.mark.native
KINDS: dict[str, dict[str, Any]] = {
    "paged": {},
    "kvarn": {"windows": (0, 0), "encoded": (True, True)},
    "conditions": {"windows": (0, 64, 0)},
}


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small engine on a machine with little memory."""
    monkeypatch.setattr(backend, "available_memory", lambda: 256 << 20)
    made = write_engine(tmp_path / "engine", **KINDS[request.param])
    if request.param != "conditions":
        return made
    conditions = {"tone": steering(64), "voice": steering(64, scaled=True)}
    changed_engine = add_conditions(made, tmp_path / "conditioned", conditions)
    add_entries(changed_engine, "tone", {"calm": {"vector": np.ones(64, np.float32)}})
    return changed_engine


def try_manifest(engine: Path, text: bytes) -> None:
    """Describe and load the engine with a manifest of this text."""
    (engine / MANIFEST).write_bytes(text)
    attempt_command(text, "inspect", str(engine))
    attempt(text, lambda: loader.load(engine, 1, verify=False).close())


def test_changed_manifests(engine: Path) -> None:
    valid = json.loads((engine / MANIFEST).read_text())
    rng = draws(0)
    for _ in range(rounds(100)):
        try_manifest(engine, change_text(rng, valid))


@pytest.mark.parametrize("case", read_corpus("manifests"), ids=str)
def test_what_once_failed(engine: Path, case: dict[str, object]) -> None:
    valid = json.loads((engine / MANIFEST).read_text())
    try_manifest(engine, json.dumps(changed(valid, tuple(case["path"]), case["value"])).encode())  # type: ignore[arg-type]
