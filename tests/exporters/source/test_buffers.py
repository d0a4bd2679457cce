"""Tests that the buffers which a checkpoint holds reach everything that runs its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from enginewright.exporters.build import build
from enginewright.exporters.calibration.blocks import load_blocks
from enginewright.exporters.calibration.texts import tokens_from_model
from enginewright.exporters.checkpoint_export.writer import export_checkpoint
from enginewright.exporters.parity import compare
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.exporters.source.buffers import bind_buffers
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.formats.safetensors import WEIGHTS
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.source.skeleton import build_skeleton, load_skeleton
from enginewright.exporters.source.tensor_matching import persistent_buffers
from enginewright.runtime.errors import ExportError
from enginewright.runtime.loader import load
from tests.exporters.source.test_sources import to_npy
from tests.support.exporters.adapters import random_adapter
from tests.support.exporters.buffered import BUFFERED, save_buffered
from tests.support.extensions import SAMPLES, extended

TOLERANCE = 1e-5
"""Of the largest logit error: float32 differs by the order of sums alone."""


@pytest.fixture
def glm(tmp_path: Path) -> Path:
    """A checkpoint with a router's correction in its second layer."""
    save_buffered("glm4_moe", tmp_path / "glm")
    return tmp_path / "glm"


def from_transformers(model: Path) -> PreTrainedModel:
    """The model as transformers loads it."""
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    )
    return loaded.eval()


@pytest.mark.parametrize("family", BUFFERED)
def test_buffers_are_those_that_transformers_loads(family: str, tmp_path: Path) -> None:
    save_buffered(family, tmp_path)
    opened = open_checkpoint(str(tmp_path))
    made = build_skeleton(opened.config, attention="eager", max_context=64).buffers
    loaded = load_skeleton(opened, attention="eager", max_context=64).buffers
    expected = persistent_buffers(from_transformers(tmp_path))
    assert expected, "the family has such buffers"
    for name, buffer in expected.items():
        assert loaded[name].dtype == buffer.dtype
        assert torch.equal(loaded[name], buffer), name
        assert not torch.equal(made[name], buffer), "the constructor makes others"
    assert all(torch.equal(loaded[name], made[name]) for name in made.keys() - expected.keys())


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("plugins", ["all", "none"])
@pytest.mark.parametrize("family", ["glm4_moe", "dots1", "gemma4_text", "apertus"])
def test_engines_compute_with_them(family: str, plugins: str, tmp_path: Path) -> None:
    save_buffered(family, tmp_path / "model")
    recipe = Recipe(kv_bits=32, plugins=plugins, max_context=160)
    build(str(tmp_path / "model"), tmp_path / "engine", recipe, "onnxruntime", trial="none", strict=True)
    with load(tmp_path / "engine", threads=2) as llm:
        parity = compare(llm, from_transformers(tmp_path / "model"), new_tokens=10)
    assert parity.max_error < TOLERANCE
    assert not parity.unexplained


CORRECTION = "model.layers.1.mlp.gate.e_score_correction_bias"

MISFITS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda t: t.pop(CORRECTION), rf"glm: buffer '{CORRECTION}' has no tensor in the checkpoint"),
    "another shape": (
        lambda t: t.update({CORRECTION: torch.zeros(5)}),
        rf"glm: buffer '{CORRECTION}' got shape \[5\] from the checkpoint, expected \[6\] from config.json",
    ),
    "another type": (
        lambda t: t.update({CORRECTION: torch.zeros(6, dtype=torch.float8_e4m3fn)}),
        rf"tensor '{CORRECTION}' got type F8_E4M3, expected one of F64, F32, F16, BF16, I64, .*BOOL; convert",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_buffer_that_does_not_fit(case: str, glm: Path) -> None:
    change, message = MISFITS[case]
    tensors = load_file(glm / WEIGHTS)
    change(tensors)
    save_file(tensors, glm / WEIGHTS, {"format": "pt"})
    with pytest.raises(ExportError, match=message):
        load_skeleton(open_checkpoint(str(glm)), attention="eager", max_context=64)


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([2**53 + 1, -7]),
        torch.tensor([True, False, True]),
        torch.tensor(-3, dtype=torch.int8),
        torch.empty(0, 4, dtype=torch.int32),
        torch.tensor([0.5, 3.0], dtype=torch.bfloat16),
    ],
    ids=lambda values: str(values.dtype),
)
def test_buffers_keep_their_type(values: torch.Tensor, glm: Path) -> None:
    tensors = load_file(glm / WEIGHTS)
    save_file({**tensors, "model.extra": values}, glm / WEIGHTS, {"format": "pt"})
    opened = open_checkpoint(str(glm))
    model = build_skeleton(opened.config, attention="eager", max_context=64).model
    model.get_submodule("model").register_buffer("extra", torch.zeros_like(values, device="meta"))
    found = bind_buffers(opened, model)["model.extra"]
    assert found.dtype == values.dtype and torch.equal(found, values)


def test_no_method_gets_them(glm: Path) -> None:
    opened = open_checkpoint(str(glm))
    assert CORRECTION not in bind_parameters(opened, load_skeleton(opened, attention="eager", max_context=64).model)
    assert not opened.unused.parts


def test_calibration_places_them(glm: Path) -> None:
    opened = open_checkpoint(str(glm))
    blocks = load_blocks(opened, 64)
    weights = bind_parameters(opened, blocks.skeleton.model)
    block = blocks.load(1, weights, torch.float32, torch.device("cpu"))
    expected = from_transformers(glm).get_buffer(CORRECTION)
    assert torch.equal(block.get_buffer(CORRECTION.removeprefix("model.layers.1.")), expected)


def test_text_for_calibration_is_written_with_them(glm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the most probable token instead gives what transformers' own model finds most probable."""
    opened = open_checkpoint(str(glm))
    monkeypatch.setattr(torch, "multinomial", lambda p, count, generator: p.argmax(-1, keepdim=True))
    weights = bind_parameters(opened, load_skeleton(opened, attention="eager", max_context=64).model)
    ids = torch.from_numpy(tokens_from_model(opened, weights, 2, 30, 0))
    with torch.no_grad():
        expected = from_transformers(glm)(input_ids=ids).logits[:, :-1]
    assert (expected.amax(-1) - expected.gather(-1, ids[:, 1:, None])[..., 0]).max() < TOLERANCE


def test_the_reference_of_another_format_has_them(glm: Path, tmp_path: Path) -> None:
    with extended(SAMPLES):
        reference = load_reference(str(to_npy(glm, tmp_path / "npy")), ())
    assert torch.equal(reference.get_buffer(CORRECTION), from_transformers(glm).get_buffer(CORRECTION))


def test_exported_checkpoints_keep_them(glm: Path, tmp_path: Path) -> None:
    changed = "model.layers.1.self_attn.q_proj"
    adapter = random_adapter(from_transformers(glm), {changed}).save(tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    export_checkpoint(
        open_checkpoint(str(glm)), tmp_path / "merged", (parse_method(f"lora:path={adapter}"),), "compressed-tensors"
    )
    before, after = load_file(glm / WEIGHTS), load_file(tmp_path / "merged" / WEIGHTS)
    assert torch.equal(after[CORRECTION], before[CORRECTION])
    assert not torch.equal(after[f"{changed}.weight"], before[f"{changed}.weight"])
