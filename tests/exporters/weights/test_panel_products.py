"""Tests of weights in panels: what they restore, and engines whose products read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe, parse_weights
from enginewright.exporters.weights.block_codes import codes_with_halves
from enginewright.exporters.weights.panel_products import PANELS, keep_panels
from enginewright.exporters.weights.stored_form import WeightUse
from enginewright.exporters.weights.weight import QuantizedRows, Weight
from enginewright.plugins.oracles.block_linear import unpack_panels
from enginewright.runtime.errors import ExportError
from enginewright.runtime.loader import load
from tests.support.exporters.reasoner_engines import MODEL as REASONER

N, K = 37, 96


def use_of(rows: np.ndarray) -> WeightUse:
    """A lookup of `rows`, which stands for any use of them."""
    table, ids = ir.Value(name="w"), ir.Value(name="ids")
    node = ir.node("Gather", [table, ids])
    weight = Weight(shape=rows.shape, dtype=ir.DataType.FLOAT, load=lambda: rows)
    return WeightUse(graph=ir.Graph([table, ids], node.outputs, nodes=[node]), node=node, rows=weight, for_cpu=True)


@pytest.mark.parametrize("offset", ["", "zero_points", "minima"])
@pytest.mark.parametrize("group_size", [16, 32, 48, K])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_codes_that_were_chosen_stay_what_they_are(bits: int, group_size: int, offset: str) -> None:
    rng = np.random.default_rng(bits)
    low, high, groups = -(1 << (bits - 1)), 1 << (bits - 1), K // group_size
    codes = rng.integers(low, high, (N, K)).astype(np.int8)
    scales = rng.uniform(0.001, 0.1, (N, groups)).astype(np.float32)
    zeros = rng.integers(low, high, (N, groups)).astype(np.int8)
    minima = rng.uniform(-1, 1, (N, groups)).astype(np.float32)
    chosen = QuantizedRows(
        bits=bits,
        group_size=group_size,
        load=lambda: (codes, scales),
        zero_points=(lambda: zeros) if offset == "zero_points" else None,
        minima=(lambda: minima) if offset == "minima" else None,
    )
    encoding = keep_panels(use_of(np.zeros((N, K), np.float32)), chosen)
    layout, part = encoding.layout, encoding.parts[PANELS]
    panels = part.load()
    assert panels.shape == part.shape
    found = unpack_panels(panels, N, K, layout.bits, layout.block, scale_bits=layout.scale_bits, minima=layout.minima)
    np.testing.assert_allclose(found, chosen.restore(), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_chosen_codes_are_nearest_to_the_numbers_for_scales_of_halves(bits: int, symmetric: bool) -> None:
    rows = np.random.default_rng(0).normal(0, 0.02, (20, 100)).astype(np.float32)
    rows[3, 32:64] = 0
    codes, scales, minima = codes_with_halves(rows, bits, 32, symmetric=symmetric)
    assert scales.dtype == np.float16 and (minima is None) is symmetric
    wide = np.repeat(scales.astype(np.float32), 32, axis=1)[:, :100]
    if minima is None:
        restored = (codes - np.float32(1 << (bits - 1))) * wide
    else:
        restored = codes * wide + np.repeat(minima.astype(np.float32), 32, axis=1)[:, :100]
    np.testing.assert_array_less(np.abs(restored - rows), 1.01 * np.abs(wide) + 1e-5)  # the largest code is clipped
    inner = np.abs(restored - rows) <= 0.51 * np.abs(wide) + 1e-5
    assert inner.mean() > 0.95


def test_a_scale_beyond_every_half_is_refused() -> None:
    with pytest.raises(
        ExportError, match="expected at most 65504, the largest half; do --weights with linear=onnxruntime"
    ):
        codes_with_halves(np.full((1, 32), 1e9, np.float32), 4, 32, symmetric=True)


def test_a_graph_that_is_not_for_cpus_is_refused(tmp_path: Path) -> None:
    recipe = Recipe(weights=parse_weights("int4:linear=enginewright"), plugins="none")
    with pytest.raises(ExportError, match="got linear=enginewright and a graph that is not float32 with our ops"):
        build(str(REASONER), tmp_path / "engine", recipe, "onnxruntime")


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.parametrize("options", ["", ",compute=float32", ",symmetric=false", ",embedding=false", ",block_size=16"])
def test_logits_are_close_to_those_of_the_other_products(options: str, tmp_path: Path) -> None:
    """Scales are rounded to halves here and not there, so logits of both are only close."""
    found = {}
    for linear in ("onnxruntime", "enginewright"):
        recipe = Recipe(weights=parse_weights(f"int8:linear={linear}{options}"))
        build(str(REASONER), tmp_path / linear, recipe, "onnxruntime")
        with load(tmp_path / linear) as llm:
            found[linear] = llm.logits(list(range(5, 45)))
    model = ir.load(tmp_path / "enginewright" / "graphs" / "decoder.onnx")
    kinds = {node.op_type for node in model.graph}
    assert "BlockLinear" in kinds and "MatMulNBits" not in kinds
    size = np.abs(found["onnxruntime"]).max()
    assert np.abs(found["enginewright"] - found["onnxruntime"]).max() < 0.03 * size
