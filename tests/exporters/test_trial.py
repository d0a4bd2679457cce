"""Trials of new engines: what is tried and said, and broken engines that are refused before anything is published."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from enginewright.exporters import build as building
from enginewright.exporters import trial
from enginewright.exporters.build import build
from enginewright.exporters.methods import registry
from enginewright.exporters.methods.anchors import Anchors
from enginewright.exporters.methods.hooks import Method
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.methods.tolerance import COARSE_CODES, EXACT, FINE_CODES, Tolerance, tolerance_of_numbers
from enginewright.exporters.parity import GreedyMatch, Parity
from enginewright.exporters.recipe import Recipe, parse_method, parse_weights
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime import cli
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.errors import BuildError, UnsupportedError
from tests.support.exporters.families import save_checkpoint
from tests.support.exporters.fixtures import CheckpointMaker
from tests.support.extensions import SAMPLES, extended

pytestmark = [pytest.mark.native, pytest.mark.slow]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Of the method of these tests."""

    size: float = 1.0


def report(root: Path) -> dict[str, Any]:
    """What the build wrote about its trial."""
    found: dict[str, Any] = json.loads((root / trial.REPORT).read_text())
    return found


def spoil(monkeypatch: pytest.MonkeyPatch, size: float, **hooks: Any) -> Recipe:
    """A recipe with a method that adds a number to the residual stream, which the reference knows nothing of."""

    def shift(config: Size, anchors: Anchors) -> None:
        weight = Weight(
            shape=(64,),
            dtype=ir.DataType.FLOAT,
            load=lambda: np.full(64, config.size, "f4") * np.arange(64, dtype="f4"),
        )
        added = anchors.add_weight("spoiling.shift", weight)
        anchors.add_after(anchors.block_output(1), lambda write, value: write("Add", value, added))

    method = Method(name="spoiling", summary="x", config=Size, extend_graph=shift, **hooks)
    known = {**registry.find_methods(), "spoiling": method}
    monkeypatch.setattr(registry, "find_methods", lambda: known)
    return Recipe(apply=(Applied("spoiling", Size(size=size)),), max_context=200)


def test_the_command_says_what_was_tried(
    checkpoint: CheckpointMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", "--model", str(checkpoint("qwen2")), "--max-context", "200", "--output"]
    assert cli.main([*arguments, str(tmp_path / "engine")]) == 0
    assert "; tried: its logits are the model's (max error " in capsys.readouterr().out
    found = report(tmp_path / "engine")
    assert found["kind"] == "logits" and found["parity"]["tokens"] == 7 + 140 + 2 * trial.NEW_TOKENS
    assert cli.main([*arguments, str(tmp_path / "quick"), "--trial", "step"]) == 0
    assert capsys.readouterr().out.endswith("; tried: its first steps ran\n")
    assert report(tmp_path / "quick") == {"kind": "step", "told": "tried: its first steps ran", "parity": None}
    assert cli.main([*arguments, str(tmp_path / "untried"), "--trial", "none"]) == 0
    assert capsys.readouterr().out.endswith("; not tried\n")


def test_an_engine_with_other_logits_is_not_published(
    checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recipe = str(checkpoint("qwen2")), spoil(monkeypatch, 1e-3)
    with pytest.raises(
        BuildError, match=r"trial: got an engine that differs from qwen2: max error .*--trial none to keep it"
    ):
        build(model, tmp_path / "engine", recipe, "onnxruntime")
    assert not list(tmp_path.iterdir())
    build(model, tmp_path / "engine", recipe, "onnxruntime", trial="step")
    assert report(tmp_path / "engine")["kind"] == "step"


def test_a_methods_tolerance_counts(
    checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = spoil(monkeypatch, 1e-3, tolerance=lambda config, allowed: COARSE_CODES)
    build(str(checkpoint("qwen2")), tmp_path / "engine", recipe, "onnxruntime")
    assert report(tmp_path / "engine")["kind"] == "logits"


def test_logits_that_are_no_numbers(
    checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = spoil(monkeypatch, 1e39)  # infinite as float32, and a number in the manifest
    with pytest.raises(BuildError, match=r"trial: got .*not finite, expected numbers.*nothing was published"):
        build(str(checkpoint("qwen2")), tmp_path / "engine", recipe, "onnxruntime", trial="step")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_scrambled_codes_are_refused_and_coarse_ones_are_not(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes of the output projection's codes in another order, as a wrong packing would leave them."""
    save_checkpoint("qwen2", tmp_path / "model", gain=4.0)
    recipe = Recipe(weights=parse_weights(f"{weights}:block_size=64"), max_context=200)
    build(str(tmp_path / "model"), tmp_path / "engine", recipe, "onnxruntime")
    assert report(tmp_path / "engine")["kind"] == "logits"

    def export_scrambled(model: str, root: Path, recipe: Recipe, **options: Any) -> Manifest:
        manifest = export(model, root, recipe, **options)
        path = root / manifest.graphs["decoder"].files[1].path
        data = bytearray(path.read_bytes())
        data[: len(data) // 2] = data[: len(data) // 2][::-1]
        path.write_bytes(data)
        return manifest

    export = building.export
    monkeypatch.setattr(building, "export", export_scrambled)
    with pytest.raises(BuildError, match=r"trial: got .*(differs from|not finite|below the largest)"):
        build(str(tmp_path / "model"), tmp_path / "broken", recipe, "onnxruntime")
    assert not (tmp_path / "broken").exists()


def test_an_engine_that_does_not_open(
    checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(model: str, root: Path, recipe: Recipe, **options: Any) -> Manifest:
        manifest = export(model, root, recipe, **options)
        return dataclasses.replace(manifest, decoding={"kind": "telepathic"})

    export = building.export
    monkeypatch.setattr(building, "export", cut)
    with pytest.raises(BuildError, match="trial: got an engine for onnxruntime that does not open"):
        build(str(checkpoint("qwen2")), tmp_path / "engine", Recipe(), "onnxruntime")
    assert not list(tmp_path.iterdir())


def test_an_engine_that_no_machine_can_run(
    checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache policy evicts between single tokens, and this engine decides several in a step."""
    policy = {"kind": "first_and_newest", "first": 1, "newest": 1}
    recipe = spoil(
        monkeypatch,
        0.0,
        choose_decoding=lambda config, decoding: {**decoding, "k": 3},
        choose_cache=lambda config, cache: dataclasses.replace(cache, policy=policy),
    )
    with (
        extended(SAMPLES),
        pytest.raises(BuildError, match=r"got an engine that no machine can run \(.*'first_and_newest': .* up to 3"),
    ):
        build(str(checkpoint("qwen2")), tmp_path / "engine", recipe, "onnxruntime", trial="step")
    assert not list(tmp_path.iterdir())


def test_memory_for_the_model(checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "available_memory", lambda: 100_000)
    build(str(checkpoint("qwen2")), tmp_path / "engine", Recipe(), "onnxruntime")
    found = report(tmp_path / "engine")
    assert found["kind"] == "step"
    assert "not compared with the model, whose float weights take 0.0 GiB, more than half of the" in found["told"]


def test_a_machine_that_cannot_run_it(
    checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UnsupportedError("no GPU")

    monkeypatch.setattr(trial, "load", refuse)
    build(str(checkpoint("qwen2")), tmp_path / "engine", Recipe(), "onnxruntime")
    assert report(tmp_path / "engine")["told"] == "not tried, because this machine cannot run it: no GPU"


def test_a_short_context_and_an_unknown_kind(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    build(str(checkpoint("qwen2")), tmp_path / "engine", Recipe(max_context=4), "onnxruntime")
    assert "a context of 4 tokens is too short" in report(tmp_path / "engine")["told"]
    with pytest.raises(BuildError, match="trial: got 'all', expected one of none, step, logits"):
        build(str(checkpoint("qwen2")), tmp_path / "other", Recipe(), "onnxruntime", trial="all")  # type: ignore[arg-type]


def parity(**changes: Any) -> Parity:
    """The figures of a good float engine, with changes."""
    figures = {
        "tokens": 9, "max_error": 1e-5, "mean_kl": 1e-9, "top1_agreement": 1.0, "logit_range": 20.0, "correlation": 1.0
    }  # fmt: skip
    return Parity(**{**figures, "greedy": (), **changes})  # type: ignore[arg-type]


BEHIND = (GreedyMatch(prompt_tokens=7, wanted=3, matched=1, margin=2.0),)


@pytest.mark.parametrize(
    ("tolerance", "changes", "failures"),
    [
        (EXACT, {}, 0),
        (EXACT, {"max_error": 3e-2}, 0),  # rounding, seven times what `check` allows
        (EXACT, {"max_error": 5e-2}, 1),
        (EXACT, {"mean_kl": 1e-4}, 1),
        (EXACT, {"greedy": BEHIND}, 1),
        (dataclasses.replace(EXACT, greedy=False), {"greedy": BEHIND}, 0),
        (EXACT, {"max_error": float("nan")}, 1),
        (FINE_CODES, {"mean_kl": 3.0, "max_error": 15.0, "correlation": 0.6}, 0),
        (COARSE_CODES, {"mean_kl": 0.1, "correlation": 0.4}, 1),
        (COARSE_CODES, {"correlation": float("nan")}, 1),
    ],
)
def test_what_is_beyond_tolerance(tolerance: Tolerance, changes: dict[str, Any], failures: int) -> None:
    assert len(trial._failures(parity(**changes), tolerance)) == failures


def test_the_tolerances_of_numbers_and_methods(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    manifest = build(str(checkpoint("qwen2")), tmp_path / "engine", Recipe(kv_bits=32), "onnxruntime", trial="none")
    assert tolerance_of_numbers(manifest) == EXACT
    assert tolerance_of_numbers(dataclasses.replace(manifest, weights={"kind": "int8", "max_kl": 1e-2})) == FINE_CODES
    assert tolerance_of_numbers(dataclasses.replace(manifest, weights={"kind": "float16"})).error == 5e-2
    assert registry.tolerance([parse_method("kvarn")], EXACT) == COARSE_CODES
    assert registry.tolerance([parse_method("piso")], EXACT) == FINE_CODES
    assert registry.tolerance([parse_method("piso")], COARSE_CODES) == COARSE_CODES
    assert registry.tolerance([parse_method("clp:heads=x")], EXACT) == dataclasses.replace(EXACT, greedy=False)
    assert registry.tolerance([parse_method("clp:heads=x,verify=true"), parse_method("lora:path=x")], EXACT) == EXACT
