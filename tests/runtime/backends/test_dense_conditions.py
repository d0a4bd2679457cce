"""Tests of conditions in graphs of standard ops: every request's own vectors, on the CPU and in TensorRT's fake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.paths import EXAMPLES
from tests.support.runtime.conditioned_engines import NamingSession, add_conditions, bake, steering
from tests.support.runtime.fake_cuda import FakeCuda
from tests.support.runtime.tensorrt_engines import add_plan, install

pytest.importorskip("torch", reason="engines are exported first, which needs enginewright[build]")

from enginewright.exporters.recipe import Recipe
from enginewright.runtime import Sampling, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.llm import LLM
from tests.support.exporters.fixtures import exported_once

pytestmark = pytest.mark.slow

CHUNK = 16
PROMPTS = [[5, 9, 4], [7, *range(20, 60)], [11], [13, 100, 200]]  # first tokens differ
NAMED = {"steer": {5: (1, 0.5), 7: (2, -1.5)}, "tone": {11: (2, 1.0)}}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = EXAMPLES / "tiny-reasoner"
    return exported_once(tmp_path_factory, model, Recipe(plugins="none", max_batch=6, max_context=256))


def vectors(root: Path) -> np.ndarray:
    """Three vectors of about the embeddings' size."""
    hidden = directory.load(root).model.hidden_size
    return np.random.default_rng(5).standard_normal((3, hidden)).astype(np.float32) / 8


def tokens_of(llm: LLM) -> list[tuple[int, ...]]:
    """Piece by piece: prompts next to rows that decode, and idle rows between rows that run."""
    sampling = [Sampling(max_tokens=count, ignore_eos=True) for count in (20, 8, 4, 14)]
    return [completion.token_ids for completion in llm.generate(PROMPTS, sampling)]


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_each_request_gets_what_it_names(
    backend: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = vectors(exported)
    added = [first * np.float32(0.5), second * np.float32(-1.5), third, third * np.float32(0)]
    wanted = []
    for i, vector in enumerate(added):
        with load(bake(exported, tmp_path / str(i), vector), 1) as llm:
            wanted.append(tokens_of(llm)[i])
    hidden = len(first)
    conditions = {"steer": steering(hidden, scaled=True), "tone": steering(hidden, per="row")}
    root = add_conditions(exported, tmp_path / "graph", conditions)
    if backend == "tensorrt":
        install(monkeypatch, FakeCuda())
        root = add_plan(root, tmp_path / "plan", chunk=CHUNK)
    with load(root, 1, backend=backend, prefill_chunk=CHUNK) as llm:
        plain = tokens_of(llm)
        assert plain[3] == wanted[3] and all(plain[i] != wanted[i] for i in range(3))
        assert not llm.loop.session.offers
        llm.loop.session = NamingSession(llm.loop.session, llm.manifest, NAMED)
        for port, entry, values in (("steer", 1, first), ("steer", 2, second), ("tone", 2, third)):
            llm.loop.session.fill(f"cond.{port}.vector", entry, values)
        assert tokens_of(llm) == wanted
