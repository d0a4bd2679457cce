"""Tests of BlockWeightsPass: the cases of its docstring, equal values under ONNX Runtime before and after, saved weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes import common

from enginewright.builders.tensorrt.block_weights import BlockWeightsPass
from enginewright.builders.tensorrt.graph_file import RowsTensor, data_path, move_rewritten, save_rewritten
from enginewright.exporters.weights.block_codes import dequantize_blocks, quantize_blocks

Arrays = dict[str, np.ndarray]
HEADER = '<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1]>\n'
N = 10
PRODUCT = (
    "y = com.microsoft.MatMulNBits <K = {k}, N = 10, bits = {bits}, block_size = {block}> (x, codes, scales{rest})"
)
GATHER = """flat = Reshape (codes, shape)
    y = com.microsoft.GatherBlockQuantized <gather_axis = 0, quantize_axis = 1, bits = {bits}, block_size = {block}>
        (flat, ids, scales)"""


def make_model(graph: str, constants: Arrays) -> ir.Model:
    """The model of `graph`, some of whose inputs become initializers."""
    model = ir.from_proto(onnx.parser.parse_model(HEADER + graph))
    for value in [v for v in model.graph.inputs if v.name in constants]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(constants[str(value.name)], name=value.name)
        model.graph.register_initializer(value)
    return model


def make_blocks(bits: int, k: int, block: int, dtype: type = np.float32, rows: int = N) -> Arrays:
    """Quantised normal numbers; the scales have both signs."""
    rng = np.random.default_rng(bits * k + block)
    codes, scales = quantize_blocks(rng.standard_normal((rows, k)).astype(np.float32), bits, block)
    assert (scales > 0).any() and (scales < 0).any()
    return {"codes": codes, "scales": scales.astype(dtype)}


def rewritten(model: ir.Model) -> ir.Model:
    """The model after the pass, without nodes and weights that are no longer used."""
    assert BlockWeightsPass()(model).modified
    common.RemoveUnusedNodesPass()(model)
    return model


def evaluate(model: ir.Model, feeds: Arrays) -> np.ndarray:
    """The only output."""
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, feeds)[0]
    return result


def product_graph(bits: int, k: int, block: int, *, x: str, bias: bool, dtype: str = "float") -> str:
    rest = ", , , bias" if bias else ""
    blocks = -(-k // block)
    return f"""g ({dtype}[{x}{k}] x, uint8[10, {blocks}, {block * bits // 8}] codes, {dtype}[10, {blocks}] scales,
        {dtype}[10] bias) => ({dtype}[{x}10] y) {{ {PRODUCT.format(k=k, bits=bits, block=block, rest=rest)} }}"""


@pytest.mark.parametrize("x", ["1, T, ", "T, ", "B, T, "], ids=["packed", "rows", "dense"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(
    ("bits", "k", "block"), [(2, 64, 32), (2, 100, 64), (4, 64, 32), (4, 60, 32), (4, 48, 16), (8, 64, 32), (8, 33, 16)]
)
def test_products(bits: int, k: int, block: int, bias: bool, x: str) -> None:
    rng = np.random.default_rng(1)
    constants = {**make_blocks(bits, k, block), "bias": rng.standard_normal(N).astype(np.float32)}
    graph = product_graph(bits, k, block, x=x, bias=bias)
    shape = {"1, T, ": (1, 5, k), "T, ": (5, k), "B, T, ": (3, 2, k)}[x]
    feeds = {"x": rng.standard_normal(shape).astype(np.float32)}
    model = rewritten(make_model(graph, constants))
    got, expected = evaluate(model, feeds), evaluate(make_model(graph, constants), feeds)
    np.testing.assert_allclose(got, expected, atol=2e-5, rtol=0)
    exact = feeds["x"] @ dequantize_blocks(constants["codes"], constants["scales"], bits, k).T
    np.testing.assert_allclose(got, exact + bias * constants["bias"], atol=2e-5, rtol=0)
    expected_ops = ["Neg"] * (bits == 8) + ["DequantizeLinear", "Transpose"] + ["Pad"] * (k % block > 0) + ["MatMul"]
    assert [node.op_type for node in model.graph] == expected_ops + ["Add"] * bias
    assert set(model.opset_imports) == {""}


def test_stored_as_the_op_wants_them() -> None:
    """INT4 codes in their order, the earlier in the low nibble, and scales in the graph's type; INT8 scales negated."""
    graph = product_graph(4, 64, 32, x="T, ", bias=False, dtype="float16")
    constants = make_blocks(4, 64, 32, np.float16)
    model = rewritten(make_model(graph, {**constants, "bias": np.zeros(N, np.float16)}))
    weight, scale = (model.graph.initializers[name] for name in ("codes.signed", "scales.blocks"))
    assert (weight.dtype, tuple(weight.shape or ())) == (ir.DataType.INT4, (N, 64))
    nibbles = np.stack([constants["codes"] & 15, constants["codes"] >> 4], -1).reshape(N, 64).astype(int) - 8
    assert weight.const_value is not None and scale.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy().astype(int), nibbles)
    np.testing.assert_array_equal(scale.const_value.numpy(), constants["scales"])
    constants = make_blocks(8, 64, 32)
    graph = product_graph(8, 64, 32, x="T, ", bias=False)
    model = rewritten(make_model(graph, {**constants, "bias": np.zeros(N, np.float32)}))
    codes = model.graph.initializers["codes.signed"].const_value
    assert codes is not None and codes.dtype is ir.DataType.INT8
    np.testing.assert_array_equal(codes.numpy().astype(int), constants["codes"].reshape(N, 64).astype(int) - 128)
    negated = model.graph.initializers["scales.negated"].const_value
    assert negated is not None
    np.testing.assert_array_equal(negated.numpy(), -constants["scales"])


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_embedding(bits: int, dtype: str) -> None:
    kind = {"float": np.float32, "float16": np.float16}[dtype]
    constants = {**make_blocks(bits, 64, 32, kind), "shape": np.array([N, -1])}
    graph = f"""g (int64[1, T] ids, uint8[10, 2, {bits * 4}] codes, {dtype}[10, 2] scales, int64[2] shape)
        => ({dtype}[1, T, 64] y) {{ {GATHER.format(bits=bits, block=32)} }}"""
    feeds = {"ids": np.array([[0, 9, 3, 3]])}
    model = rewritten(make_model(graph, constants))
    assert [node.op_type for node in model.graph] == ["Gather"]
    table = dequantize_blocks(constants["codes"], constants["scales"].astype(np.float32), bits, 64).astype(kind)
    np.testing.assert_array_equal(evaluate(model, feeds), table[feeds["ids"]])
    np.testing.assert_allclose(
        evaluate(model, feeds).astype(float), evaluate(make_model(graph, constants), feeds).astype(float), atol=2e-3
    )


def tied_model(constants: Arrays) -> ir.Model:
    """An embedding and an output projection that read one matrix of codes."""
    return make_model(
        f"""g (int64[1, T] ids, float[1, T, 64] x0, uint8[10, 2, 16] codes, float[10, 2] scales, int64[2] shape)
        => (float[1, T, 10] z) {{ {GATHER.format(bits=4, block=32)}  x = Add (x0, y)
        {PRODUCT.format(k=64, bits=4, block=32, rest="").replace("y =", "z =")} }}""",
        constants,
    )


def test_tied_weights() -> None:
    constants = {**make_blocks(4, 64, 32), "shape": np.array([N, -1])}
    rng = np.random.default_rng(2)
    feeds = {"ids": np.array([[1, 7]]), "x0": rng.standard_normal((1, 2, 64)).astype(np.float32)}
    model = rewritten(tied_model(constants))
    np.testing.assert_allclose(evaluate(model, feeds), evaluate(tied_model(constants), feeds), atol=1e-5)
    assert set(model.graph.initializers) == {"codes.signed", "scales.blocks", "codes.table"}


def make_zero_points(bits: int, blocks: int) -> np.ndarray:
    """Zero points of ten rows in whole bytes."""
    return np.random.default_rng(4).integers(0, 256, (N, -(-blocks * bits // 8))).astype(np.uint8)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(("bits", "k", "block"), [(4, 64, 32), (4, 96, 32), (4, 60, 32), (8, 64, 32), (8, 33, 16)])
def test_zero_points_of_a_product(bits: int, k: int, block: int, bias: bool) -> None:
    """The product of codes around 0, and what the zero points take off it."""
    rng = np.random.default_rng(1)
    blocks = -(-k // block)
    zeros = make_zero_points(bits, blocks)
    constants = {**make_blocks(bits, k, block), "zeros": zeros, "bias": rng.standard_normal(N).astype(np.float32)}
    graph = f"""g (float[1, T, {k}] x, uint8[10, {blocks}, {block * bits // 8}] codes, float[10, {blocks}] scales,
        uint8[10, {zeros.shape[1]}] zeros, float[10] bias) => (float[1, T, 10] y) {{
        {PRODUCT.format(k=k, bits=bits, block=block, rest=", zeros, , bias" if bias else ", zeros")} }}"""
    feeds = {"x": rng.standard_normal((1, 5, k)).astype(np.float32)}
    model = rewritten(make_model(graph, constants))
    expected = evaluate(make_model(graph, constants), feeds)
    np.testing.assert_allclose(evaluate(model, feeds), expected, atol=2e-5 * np.abs(expected).max(), rtol=0)
    assert set(model.opset_imports) == {""}


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_of_an_embedding(bits: int) -> None:
    zeros = make_zero_points(bits, 2)
    constants = {**make_blocks(bits, 64, 32), "shape": np.array([N, -1]), "zeros": zeros}
    lookup = GATHER.format(bits=bits, block=32).replace("scales)", "scales, zeros)")
    assert "zeros" in lookup
    graph = f"""g (int64[1, T] ids, uint8[10, 2, {bits * 4}] codes, float[10, 2] scales, uint8[10, {zeros.shape[1]}] zeros,
        int64[2] shape) => (float[1, T, 64] y) {{ {lookup} }}"""
    feeds = {"ids": np.array([[0, 9, 3, 3]])}
    model = rewritten(make_model(graph, constants))
    assert [node.op_type for node in model.graph] == ["Gather"]
    np.testing.assert_allclose(evaluate(model, feeds), evaluate(make_model(graph, constants), feeds), atol=1e-6)


def test_what_it_does_not_know_stays() -> None:
    graph = """g (float[T, 64] x, uint8[10, 2, 16] codes, float[10, 2] scales, int32[64] order) => (float[T, 10] y) {
        y = com.microsoft.MatMulNBits <K = 64, N = 10, bits = 4, block_size = 32> (x, codes, scales, , order) }"""
    model = make_model(graph, {**make_blocks(4, 64, 32), "order": np.zeros(64, np.int32)})
    assert not BlockWeightsPass()(model).modified
    assert [node.op_type for node in model.graph] == ["MatMulNBits"] and "com.microsoft" in model.opset_imports


def test_saved_beside_the_exported_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that the pass changes are written, a few rows at a time; the others are not copied."""
    monkeypatch.setattr("enginewright.builders.tensorrt.graph_file.STEP_BYTES", 2048)
    constants = {**make_blocks(4, 64, 32), "shape": np.array([N, -1])}
    exported = tmp_path / "decoder.onnx"
    ir.save(tied_model(constants), exported, external_data="decoder.onnx.data", size_threshold_bytes=0)
    model = rewritten(ir.load(exported))
    asked: list[int] = []
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, RowsTensor):
            make = value.const_value.rows
            value.const_value.rows = lambda a, b, make=make: asked.append(b - a) or make(a, b)
    save_rewritten(model, tmp_path / "new.onnx")
    assert sorted(asked) == [2, 2, 8, 8, 10]
    sizes = N * 64 // 2, N * 2 * 4, N * 64 * 4  # codes, scales, table
    assert sum(sizes) <= data_path(tmp_path / "new.onnx").stat().st_size <= sum(sizes) + 3 * 64
    feeds = {"ids": np.array([[1, 7]]), "x0": np.ones((1, 2, 64), np.float32)}
    expected = evaluate(tied_model(constants), feeds)

    def run(path: Path) -> np.ndarray:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found: np.ndarray = session.run(None, feeds)[0]
        return found

    np.testing.assert_allclose(run(tmp_path / "new.onnx"), expected, atol=1e-5)
    moved = move_rewritten(model, tmp_path / "new.onnx", tmp_path / "kept.onnx")
    assert moved == [tmp_path / "kept.onnx", tmp_path / "kept.onnx.data"]
    np.testing.assert_allclose(run(tmp_path / "kept.onnx"), expected, atol=1e-5)
    names = {"decoder.onnx", "decoder.onnx.data", "kept.onnx", "kept.onnx.data"}
    assert {path.name for path in tmp_path.iterdir()} == names
