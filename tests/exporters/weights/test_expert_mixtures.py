"""Tests of engines whose layers of experts are one op each: they compute what transformers does, and what branches do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import PreTrainedModel

from enginewright.exporters.build import build
from enginewright.exporters.passes import quantize_weights
from enginewright.exporters.recipe import Recipe, parse_weights
from enginewright.exporters.weights.expert_mixtures import write_panel_mixture
from enginewright.exporters.weights.panel_products import PANELS, PanelLayout
from enginewright.exporters.weights.stored_form import Encoding, Gate, Mixture
from enginewright.exporters.weights.weight import QuantizedRows, quantized_weight
from enginewright.runtime.loader import load
from tests.support.exporters.families import make_model

TOKENS = list(range(5, 45))
NAMES = ("mixtral", "gpt_oss")


def on_a_grid(model: PreTrainedModel) -> PreTrainedModel:
    """Give all matrices numbers that codes of 4 bits in blocks of 32 express, whichever way the blocks lie."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                codes = torch.randint(-8, 8, parameter.shape, generator=generator)
                codes[..., ::32] = -8  # so that the scale of each block is exactly the grid's step
                codes[..., ::32, :] = -8
                parameter.copy_(codes / 64)
    return model


def logits_of(checkpoint: Path, engine: Path, options: str = "") -> tuple[np.ndarray, dict[str, int]]:
    """Logits of TOKENS, and how often each op is in the engine's graph."""
    weights = parse_weights(f"int4:linear=enginewright{options}")
    build(str(checkpoint), engine, Recipe(weights=weights, kv_bits=32), "onnxruntime", trial="none")
    with load(engine) as llm:
        found = llm.logits(TOKENS)
    kinds = [node.op_type for node in ir.load(engine / "graphs" / "decoder.onnx").graph]
    return found, {kind: kinds.count(kind) for kind in kinds}


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.parametrize("family", NAMES)
def test_logits_are_those_of_transformers_where_codes_are_exact(family: str, tmp_path: Path) -> None:
    model = on_a_grid(make_model(family))
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        wanted = model(torch.tensor([TOKENS])).logits[0].numpy()
    found, kinds = logits_of(tmp_path / "model", tmp_path / "exact", ",compute=float32")
    assert kinds["ExpertMixture"] == 2 and "ScatterND" not in kinds
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(float(np.abs(wanted).max()), 1.0))
    rounded, _ = logits_of(tmp_path / "model", tmp_path / "rounded")  # activations of 8 bits
    assert np.abs(rounded - wanted).max() < 0.03 * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.native
def test_the_op_computes_what_branches_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model("mixtral", gain=3.0).save_pretrained(tmp_path / "model")
    found, kinds = logits_of(tmp_path / "model", tmp_path / "found", ",compute=float32,symmetric=false")
    assert kinds["ExpertMixture"] == 2
    monkeypatch.setattr(quantize_weights, "find_mixtures", lambda graph: [])
    wanted, kinds = logits_of(tmp_path / "model", tmp_path / "branches", ",compute=float32,symmetric=false")
    assert "ExpertMixture" not in kinds and kinds["ScatterND"] == 2
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(float(np.abs(wanted).max()), 1.0))


@pytest.mark.slow
@pytest.mark.native
def test_gates_that_are_no_whole_panels_keep_their_branches(tmp_path: Path) -> None:
    model = on_a_grid(make_model("mixtral", intermediate_size=40))
    model.save_pretrained(tmp_path / "model")
    found, kinds = logits_of(tmp_path / "model", tmp_path / "engine", ",compute=float32")
    assert "ExpertMixture" not in kinds and kinds["ScatterND"] == 2
    with torch.no_grad():
        wanted = model(torch.tensor([TOKENS])).logits[0].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(float(np.abs(wanted).max()), 1.0))


@pytest.mark.parametrize("offset", ["", "zero_points", "minima"])
def test_codes_stay_codes_when_their_rows_change_places(offset: str) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 8, (6, 32)).astype(np.int8)
    numbers = {name: rng.integers(1, 5, (6, 2)).astype(np.float32) for name in ("scales", "minima")}
    zeros = rng.integers(-8, 8, (6, 2)).astype(np.int8)
    rows = QuantizedRows(
        bits=4,
        group_size=16,
        load=lambda: (codes, numbers["scales"]),
        zero_points=(lambda: zeros) if offset == "zero_points" else None,
        minima=(lambda: numbers["minima"]) if offset == "minima" else None,
    )
    weight, order = quantized_weight((6, 32), rows), np.array([5, 0, 3, 1, 4, 2])
    moved = weight.with_rows(order)
    assert moved.quantized is not None and moved.form == weight.form
    np.testing.assert_array_equal(moved.load(), weight.load()[order])


@pytest.mark.parametrize("changed", [{"order": "a hash"}, {"bits": 5}, {"n": 48}])
def test_experts_that_differ_or_need_another_order_of_columns_stay_products(changed: dict[str, Any]) -> None:
    x, result, up, down = (ir.Value(name=name) for name in ("x", "result", "up", "down"))
    product = ir.node("MatMul", [x, up], outputs=[result])
    after = ir.node("Identity", [result])
    mixture = Mixture(
        graph=ir.Graph([x, up, down], after.outputs, nodes=[product, after]),
        result=result,
        x=x,
        ids=x,
        weights=x,
        chosen=2,
        up=(product, product),
        down=(product, product),
        up_bias=None,
        down_bias=None,
        gate=Gate(activation="silu"),
    )
    layout = PanelLayout(n=64, k=32, bits=4, block=32, scale_bits=16, offset="")
    panels = {PANELS: layout.weight(lambda: np.zeros((4, 576), np.int8))}
    same, other = (Encoding(parts=panels, layout=each) for each in (layout, dataclasses.replace(layout, **changed)))
    everywhere = "order" in changed
    ups = [other, other] if everywhere else [same, other]
    assert not write_panel_mixture(mixture, ups, [same, same], exact=False)
    assert not write_panel_mixture(mixture, [same, same], ups, exact=False)
    assert [node.op_type for node in mixture.graph] == ["MatMul", "Identity"]
    assert write_panel_mixture(mixture, [same, same], [same, same], exact=False)
    assert after.inputs[0] is not result
