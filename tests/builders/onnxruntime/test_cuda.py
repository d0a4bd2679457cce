"""Tests of the engine for ONNX Runtime's CUDA provider: its contents, and the graphs that are refused."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe, parse_method, parse_weights
from enginewright.plugins.ops.clp_emit import CLP_EMIT
from enginewright.runtime.artifact import directory
from enginewright.runtime.errors import BuildError
from tests.support.exporters.families import save_checkpoint
from tests.support.paths import EXAMPLES

pytestmark = pytest.mark.slow  # each exports a graph

ENGINE = "engines/decoder.onnxruntime-cuda.onnx"
WIDE = {
    "Cast",
    "Constant",
    "Mul",
    "Cos",
    "Sin",
    "Gather",
    "Unsqueeze",
    "Squeeze",
    "Reshape",
    "GreedySample",
    "Transpose",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "qwen3"
    save_checkpoint("qwen3", path)
    return path


def make(checkpoint: Path, root: Path, **recipe: object) -> ir.Model:
    build(str(checkpoint), root, Recipe(**recipe), "onnxruntime-cuda")
    return ir.load(root / ENGINE)


@pytest.mark.parametrize("weights", ["float32", "int4"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_computes_in_the_narrow_type(dtype: str, weights: str, checkpoint: Path, tmp_path: Path) -> None:
    model = make(checkpoint, tmp_path / "engine", dtype=dtype, weights=parse_weights(weights))
    narrow = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}[dtype]
    types = [node.op_type for node in model.graph]
    assert types.count("SplitQkv") == types.count("PagedAttention") == 2
    assert not {"RotaryEmbedding", "RMSNormalization"} & set(types)
    for node in model.graph:
        floats = {v.dtype for v in (*node.inputs, *node.outputs) if v is not None} & {ir.DataType.FLOAT, narrow}
        if node.op_type not in WIDE:
            assert floats == {narrow}, node.op_type
    stored = [value for value in model.graph.initializers.values() if isinstance(value.const_value, ir.ExternalTensor)]
    assert {value.dtype for value in stored} == ({narrow} if weights == "float32" else {narrow, ir.DataType.UINT8})
    (logits, *_) = model.graph.outputs
    assert (logits.name, logits.dtype) == ("logits", ir.DataType.FLOAT)


def test_the_manifest_says_what_it_is(checkpoint: Path, tmp_path: Path) -> None:
    make(checkpoint, tmp_path / "engine", dtype="bfloat16", apply=(parse_method("kvarn"),))
    manifest = directory.load(tmp_path / "engine")
    (engine,) = manifest.graphs["decoder"].engines
    assert (engine.backend, engine.compute) == ("onnxruntime-cuda", "cuda-sm_80+")
    assert engine.plugins == {"GreedySample": 1, "KVarNAttention": 1, "SplitQkv": 1}
    assert manifest.weights == {"kind": "bfloat16"}


def test_heads_read_narrow_states(tmp_path: Path) -> None:
    examples = EXAMPLES
    apply = (parse_method(f"clp:heads={examples / 'tiny-reasoner-clp'}"),)
    model = make(examples / "tiny-reasoner", tmp_path / "engine", dtype="float16", apply=apply)
    (node,) = (node for node in model.graph if node.op_type == "ClpEmit")
    types = {port.name: None if v is None else v.dtype for port, v in zip(CLP_EMIT.inputs, node.inputs, strict=False)}
    assert types["hidden"] is types["up_weight"] is types["out_bias"] is ir.DataType.FLOAT16
    assert types["classifier_weight"] is types["classifier_bias"] is ir.DataType.FLOAT


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "got a graph that computes in float32, expected float16 or bfloat16; build with --dtype float16"),
        (
            {"dtype": "float16", "apply": ("kvarn:k_bits=8,v_bits=2",)},
            "kvarn: got k_bits=8,v_bits=2, expected one of k_bits=2,v_bits=2, k_bits=4,v_bits=2",
        ),
    ],
    ids=["float32", "bits"],
)
def test_what_the_kernels_do_not_take(recipe: dict, message: str, checkpoint: Path, tmp_path: Path) -> None:
    recipe = {**recipe, "apply": tuple(parse_method(spec) for spec in recipe.get("apply", ()))}
    with pytest.raises(BuildError, match=message):
        make(checkpoint, tmp_path / "engine", **recipe)
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("", "got heads of 16 and 16, expected one of 32 and 32, 64 and 64"),
        ("kvarn:windowed=false", "got heads of 16, expected one of 32, 64, 128, 256|got heads of 16 and 16"),
    ],
)
def test_head_sizes_without_a_kernel(method: str, message: str, tmp_path: Path) -> None:
    save_checkpoint("qwen2", tmp_path / "model")
    apply = (parse_method(method),) if method else ()
    with pytest.raises(BuildError, match=message):
        make(tmp_path / "model", tmp_path / "engine", dtype="float16", apply=apply)


def test_the_cpu_does_not_take_a_narrow_graph(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="got a graph that computes in half precision, expected float32"):
        build(str(checkpoint), tmp_path / "engine", Recipe(dtype="float16"), "onnxruntime")
