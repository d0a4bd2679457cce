"""Tests of weights in panels: what they restore, and engines whose products read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from enginewright.exporters.build import build
from enginewright.exporters.passes.quantize_weights import QuantizeWeightsPass
from enginewright.exporters.recipe import Recipe, parse_weights
from enginewright.exporters.source.formats.gguf.stored_codes import CODE_TYPES, FACTORED, HALVES
from enginewright.exporters.weights.block_codes import codes_with_halves
from enginewright.exporters.weights.graph_weights import KEY
from enginewright.exporters.weights.panel_products import PANELS, keep_panels
from enginewright.exporters.weights.stored_form import Encoding, WeightUse
from enginewright.exporters.weights.weight import QuantizedRows, Weight, concatenate, quantized_weight
from enginewright.plugins.oracles.block_linear import unpack_panels
from enginewright.runtime.errors import ExportError
from enginewright.runtime.loader import load
from tests.support.exporters.families import save_checkpoint
from tests.support.exporters.gguf_files import make_model, random_blocks, write_gguf
from tests.support.exporters.packed_checkpoints import (
    Parts,
    awq_parts,
    gptq_parts,
    random_integers,
    seed_of,
    write_twins,
)
from tests.support.exporters.reasoner_engines import MODEL as REASONER
from tests.support.exporters.small_graphs import make_graph, quantized

N, K = 37, 96


def use_of(rows: np.ndarray) -> WeightUse:
    """A lookup of `rows`, which stands for any use of them."""
    table, ids = ir.Value(name="w"), ir.Value(name="ids")
    node = ir.node("Gather", [table, ids])
    weight = Weight(shape=rows.shape, dtype=ir.DataType.FLOAT, load=lambda: rows)
    return WeightUse(graph=ir.Graph([table, ids], node.outputs, nodes=[node]), node=node, rows=weight, for_cpu=True)


def unpacked(encoding: Encoding, n: int, k: int) -> np.ndarray:
    """The matrix [n, k] that the oracle reads in panels, which have the shape that was known before."""
    layout, part = encoding.layout, encoding.parts[PANELS]
    panels = part.load()
    assert panels.shape == part.shape
    minima = layout.attributes["minima"]
    return unpack_panels(panels, n, k, layout.bits, layout.block, scale_bits=layout.scale_bits, minima=minima)


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("offset", ["", "zero_points", "minima"])
@pytest.mark.parametrize("group_size", [16, 32, 48, K])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_codes_that_were_chosen_stay_what_they_are(bits: int, group_size: int, offset: str, halves: bool) -> None:
    rng = np.random.default_rng(bits)
    low, high, groups = -(1 << (bits - 1)), 1 << (bits - 1), K // group_size
    codes = rng.integers(low, high, (N, K)).astype(np.int8)
    scales = rng.uniform(0.001, 0.1, (N, groups)).astype(np.float32)
    zeros = rng.integers(low, high, (N, groups)).astype(np.int8)
    minima = rng.uniform(-1, 1, (N, groups)).astype(np.float32)
    if halves:
        scales, minima = (each.astype(np.float16).astype(np.float32) for each in (scales, minima))
    chosen = QuantizedRows(
        bits=bits,
        group_size=group_size,
        load=lambda: (codes, scales),
        zero_points=(lambda: zeros) if offset == "zero_points" else None,
        minima=(lambda: minima) if offset == "minima" else None,
        halves=halves,
    )
    encoding = keep_panels(use_of(np.zeros((N, K), np.float32)), chosen)
    assert encoding.layout.scale_bits == (16 if halves else 32)
    np.testing.assert_array_equal(unpacked(encoding, N, K), chosen.restore())


BITS = {
    **{"Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "Q8_0": 8.5, "Q6_K": 6.5625},  # as in the file
    **{"Q2_K": 3.125, "Q3_K": 3.5625, "Q4_K": 4.625, "Q5_K": 5.625},  # 2.625, 3.4375, 4.5 and 5.5 in the file
    **{"IQ4_NL": 8.5, "MXFP4": 9},
}
"""Bits of a weight in panels, with scales, minima and factors."""


@pytest.mark.parametrize("kind", CODE_TYPES)
def test_blocks_of_gguf_have_the_same_numbers_in_panels(kind: int) -> None:
    found = CODE_TYPES[kind]
    numbers = GGML_QUANT_SIZES[GGMLQuantizationType(kind)][0]
    content = random_blocks(GGMLQuantizationType(kind), 48 * 2)
    blocks = found.read(content.tobytes(), (48, 2 * numbers), kind)
    lowest = blocks.minima
    chosen = QuantizedRows(
        bits=found.bits,
        group_size=found.group_size,
        load=lambda: (blocks.codes, blocks.scales),
        minima=None if lowest is None else lambda: lowest,
        halves=found.scales == HALVES,
        factored=None if found.scales != FACTORED else lambda: blocks.factored,
    )
    encoding = keep_panels(use_of(np.zeros((48, 2 * numbers), np.float32)), chosen)
    expected = dequantize(content.reshape(48, -1), GGMLQuantizationType(kind))
    np.testing.assert_array_equal(unpacked(encoding, 48, 2 * numbers), expected)
    assert encoding.parts[PANELS].size * 8 / (48 * 2 * numbers) == BITS[GGMLQuantizationType(kind).name]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["scales", "minima"])
def test_a_scale_that_is_no_number_is_refused_by_name(part: str, wrong: float) -> None:
    numbers = {"scales": np.ones((16, 1), np.float32), "minima": np.ones((16, 1), np.float32)}
    numbers[part][3] = wrong
    chosen = QuantizedRows(
        bits=4,
        group_size=32,
        load=lambda: (np.zeros((16, 32), np.int8), numbers["scales"]),
        minima=lambda: numbers["minima"],
    )
    encoding = keep_panels(use_of(np.zeros((16, 32), np.float32)), chosen)
    with pytest.raises(ExportError, match="w: got a scale or a minimum of NaN or infinity, expected numbers"):
        encoding.parts[PANELS].load()


def test_rows_that_are_joined_have_halves_if_all_of_them_have() -> None:
    def rows(halves: bool) -> Weight:
        load = lambda: (np.zeros((16, 32), np.int8), np.ones((16, 1), np.float32))  # noqa: E731
        return quantized_weight((16, 32), QuantizedRows(bits=4, group_size=32, load=load, halves=halves))

    for kinds in ((True, True), (True, False), (False, True)):
        joined = concatenate([rows(each) for each in kinds], 0).quantized
        assert joined is not None and joined.halves is all(kinds)


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


@pytest.mark.parametrize("weights", ["stored", "float32"])
def test_codes_in_a_graph_that_is_not_for_cpus_are_refused(weights: str) -> None:
    text = "g (float[1, T, 32] x, float[32, 16] w) => (float[1, T, 16] logits) { logits = MatMul (x, w) }"
    model = make_graph(text, {"w": np.zeros((32, 16), np.float32)})
    model.graph.inputs[1].meta[KEY] = quantized(16, 32, group_size=32).transposed()
    with pytest.raises(ExportError, match="got linear=enginewright and a graph that is not float32 with our ops"):
        QuantizeWeightsPass(parse_weights(f"{weights}:linear=enginewright"))(model)


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


KINDS = {
    "norm": "F32",
    "attn_q": "Q4_K",
    "attn_k": "Q4_K",
    "attn_v": "Q4_K",
    "attn_output": "Q4_1",
    "blk.1.ffn_down": "Q5_0",
    "ffn_down": "Q4_0",
    "ffn": "Q6_K",
    "token": "Q5_1",
    "output": "Q8_0",
}
HELD = {
    "Q4_0": "4 bits in panels of blocks of 32, with scales of 16 bits",
    "Q4_1": "4 bits in panels of blocks of 32, with scales and minima of 16 bits",
    "Q4_K": "4 bits in panels of blocks of 32, with scales and minima of 8 bits and factors",
    "Q5_0": "5 bits in panels of blocks of 32, with scales of 16 bits",
    "Q5_1": "5 bits in panels of blocks of 32, with scales and minima of 16 bits",
    "Q6_K": "6 bits in panels of blocks of 16, with scales of 8 bits and factors",
    "Q8_0": "8 bits in panels of blocks of 32, with scales of 16 bits",
}


def logits_of(model: Path, root: Path, linear: str, compute: str) -> tuple[np.ndarray, dict[str, str]]:
    """Logits of an engine, and how it holds the codes of the checkpoint."""
    weights = parse_weights(f"stored:linear={linear},compute={compute}")
    recipe = Recipe(weights=weights, max_batch=2, max_context=64, kv_bits=32)
    manifest = build(str(model), root / f"{linear}-{compute}", recipe, "onnxruntime", trial="none")
    with load(root / f"{linear}-{compute}", threads=1) as llm:
        return llm.logits(list(range(3, 43))), {each["type"]: each["kept"] for each in manifest.weights["codes"]}


def check_both(model: Path, root: Path, held: dict[str, str]) -> None:
    """Compare the logits of both products, with exact activations and with those of 8 bits."""
    exact, _ = logits_of(model, root, "onnxruntime", "float32")
    size = np.abs(exact).max()
    got, told = logits_of(model, root, "enginewright", "float32")
    assert told == held
    assert np.abs(got - exact).max() < 2e-5 * size
    rounded, _ = logits_of(model, root, "onnxruntime", "int8")
    ours, _ = logits_of(model, root, "enginewright", "int8")
    spread = [float(np.square(each - exact).mean() ** 0.5) for each in (ours, rounded)]
    assert 0 < spread[0] < 1.5 * spread[1] < 0.1 * size


@pytest.mark.slow
@pytest.mark.native
def test_engines_of_a_gguf_file(tmp_path: Path) -> None:
    """Every type of block that has a kernel of its own, with the logits of the other products on the same codes."""
    model = make_model("llama", hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2)
    check_both(write_gguf(model, tmp_path / "m.gguf", kinds=KINDS), tmp_path, HELD)


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.parametrize("form", ["awq", "gptq"])
def test_engines_of_integers_with_zero_points(form: str, tmp_path: Path) -> None:
    settings = {"quant_method": form, "bits": 4, "group_size": 32, "desc_act": form == "gptq"}

    def pack(name: str, shape: tuple[int, ...]) -> tuple[Parts, np.ndarray]:
        made = random_integers(*shape, seed_of(name), bits=4, group_size=32, act_order=form == "gptq")
        return (awq_parts if form == "awq" else gptq_parts)(made), made.numbers

    save_checkpoint("qwen3", tmp_path / "model", vocab_size=256)
    packed, _ = write_twins(tmp_path / "model", tmp_path, pack, settings)
    held = "4 bits in panels of blocks of 32, with scales and zero points of 16 bits"
    told = f"{form.upper()} of 4 bits in groups of 32"
    check_both(packed, tmp_path, {told: held + (", reordered" if form == "gptq" else "")})
