"""Tests of extra heads on a backbone with Depth-Attention: they learn from its engines' states and fit no other backbone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from enginewright.exporters.build import build
from enginewright.exporters.methods.clp import train
from enginewright.exporters.methods.clp.backbone_states import States, TokenSequence, compute_states
from enginewright.exporters.methods.clp.head_set import read_head_set
from enginewright.exporters.methods.clp.method import Config
from enginewright.exporters.methods.clp.train import Options, tune
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.recipe import Recipe
from enginewright.runtime import Sampling, load
from enginewright.runtime.errors import ExportError
from tests.support.exporters.families import save_checkpoint

DEPTH, LAYERS = {"stride": 2, "recent": 0}, 5
EXACT = Recipe(kv_bits=32, max_batch=4)
FAST = Options(epochs=60, rate=5e-3, classifier_epochs=20, classifier_rate=0.02, label_source="backbone")


def change_config(model: Path, output: Path, depth: dict[str, int] | None) -> Path:
    """Give the checkpoint's weights another rule of sources, or none."""
    shutil.copytree(model, output)
    config = json.loads((output / "config.json").read_text())
    (output / "config.json").write_text(json.dumps({**config, "depth_attention": depth}))
    return output


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that mixes."""
    path = tmp_path_factory.mktemp("depth") / "model"
    save_checkpoint("qwen3", path, gain=3.0, num_hidden_layers=LAYERS, depth_attention=DEPTH)
    return path


@pytest.fixture(scope="module")
def engine(model: Path) -> Path:
    """The model's plain engine."""
    build(str(model), model.parent / "engine", EXACT, "onnxruntime")
    return model.parent / "engine"


def said(engine: Path, count: int) -> list[TokenSequence]:
    """An engine's answers to short prompts."""
    prompts = np.random.default_rng(0).integers(3, 250, (count, 3)).tolist()
    with load(engine, threads=1) as llm:
        answers = llm.generate(prompts, Sampling(max_tokens=24, ignore_eos=True))
    return [TokenSequence(ids=(*p, *a.token_ids), given=3) for p, a in zip(prompts, answers, strict=True)]


def recorded(model: Path, texts: Sequence[TokenSequence], output: Path) -> tuple[np.ndarray, np.ndarray]:
    """The states from which `tune` learns, and the next tokens that they predict."""
    found: list[tuple[np.ndarray, np.ndarray]] = []

    def record(*arguments: Any) -> States:
        states = compute_states(*arguments)
        found.append((np.array(states.states), np.array(states.best)))
        return states

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "compute_states", record)
        tune(str(model), texts, output, Options(epochs=1, classifier_epochs=1))
    return found[0]


@pytest.mark.native
@pytest.mark.slow
def test_states_are_those_of_the_engine(model: Path, engine: Path, tmp_path: Path) -> None:
    """The output projection makes the engine's logits of them; without mixing they are others."""
    rng = np.random.default_rng(1)
    texts = [TokenSequence(ids=tuple(rng.integers(3, 250, n).tolist())) for n in (40, 7, *[12] * 10)]
    states, best = recorded(model, texts, tmp_path / "heads")
    projection = load_file(model / "model.safetensors")["lm_head.weight"].numpy()
    with load(engine, threads=1) as llm:
        logits = np.concatenate([llm.logits(text.ids) for text in texts])
    np.testing.assert_allclose(states @ projection.T, logits, atol=5e-5)
    np.testing.assert_array_equal(best, logits.argmax(-1))
    plain, _ = recorded(change_config(model, tmp_path / "plain", None), texts, tmp_path / "others")
    assert np.abs(plain - states).max() > 0.05


@pytest.mark.native
@pytest.mark.slow
def test_checked_heads_change_nothing(model: Path, engine: Path, tmp_path: Path) -> None:
    """Trained on what the model says, they guess a part of it; the answers stay the plain engine's."""
    texts = said(engine, 60)
    report = tune(str(model), texts, tmp_path / "heads", FAST)
    assert report.longest > 1
    method = Applied("clp", Config(heads=str(tmp_path / "heads"), tau=0.3, verify=True))
    build(str(model), tmp_path / "engine", Recipe(kv_bits=32, max_batch=4, apply=(method,)), "onnxruntime")
    prompts, sampling = [list(text.ids[:3]) for text in texts[:20]], Sampling(max_tokens=24, ignore_eos=True)
    with load(tmp_path / "engine", threads=1) as llm:
        found = llm.generate(prompts, sampling)
    assert [tuple(c.token_ids) for c in found] == [text.ids[3:] for text in texts[:20]]
    guessed, agreed = (sum(getattr(c, name) for c in found) for name in ("guessed_tokens", "agreed_tokens"))
    assert agreed > 10 and guessed > agreed


@pytest.mark.parametrize("depth", [None, {"stride": 1, "recent": 0}])
def test_the_same_weights_mixed_otherwise_are_another_backbone(
    depth: dict[str, int] | None, model: Path, tmp_path: Path
) -> None:
    texts = [TokenSequence(ids=tuple(range(5 + i, 25 + i))) for i in range(10)]
    tune(str(model), texts, tmp_path / "heads", Options(epochs=1, classifier_epochs=1))
    assert read_head_set(tmp_path / "heads").backbone.name == "model"
    other = change_config(model, tmp_path / "other", depth)
    recipe = Recipe(apply=(Applied("clp", Config(heads=str(tmp_path / "heads"))),))
    with pytest.raises(
        ExportError, match=r"expected other \(\w{12}\): the weights or the config's depth_attention differ"
    ):
        build(str(other), tmp_path / "engine", recipe, "onnxruntime")
