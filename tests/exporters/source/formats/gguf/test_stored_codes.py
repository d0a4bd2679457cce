"""Tests of codes that are kept: those of the blocks, in the order of rows that the parameter has, up to the engine's graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from onnx import numpy_helper

from enginewright.exporters.build import build
from enginewright.exporters.export import export
from enginewright.exporters.methods.registry import changes_weights
from enginewright.exporters.recipe import Recipe, parse_method, parse_weights
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.formats.gguf.stored_codes import CODE_TYPES
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.weights.block_codes import store_codes
from enginewright.runtime.errors import ExportError
from enginewright.runtime.loader import load
from enginewright.runtime.requests.sampling import Sampling
from tests.support.exporters.gguf_files import make_model, write_gguf

KINDS = {
    "norm": "F32",
    "attn_q": "Q8_0",
    "attn_k": "Q4_0",
    "attn_v": "Q4_0",
    "ffn_down": "Q8_0",
    "ffn": "Q4_0",
    "token": "Q8_0",
}


def test_the_types() -> None:
    assert set(CODE_TYPES) == {GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0}


@pytest.mark.parametrize("kind", CODE_TYPES)
@pytest.mark.parametrize("shape", [(3, 32), (5, 96), (1, 32), (0, 64)])
def test_codes_times_scales_are_the_librarys_numbers(kind: int, shape: tuple[int, int]) -> None:
    found = CODE_TYPES[kind]
    blocks = shape[0] * shape[1] // 32
    random = np.random.default_rng(1)
    codes = random.integers(0, 256, (blocks, 32 * found.bits // 8)).astype(np.uint8)
    scales = random.normal(size=(blocks, 1)).astype(np.float16).view(np.uint8)
    content = np.concatenate([scales, codes], axis=1)
    got, steps = found.read(content.tobytes(), shape)
    restored = (got.reshape(*steps.shape, 32) * steps[..., None]).reshape(shape)
    rows = content.reshape(shape[0], shape[1] // 32 * content.shape[1])
    expected = dequantize(rows, GGMLQuantizationType(kind)) if blocks else np.empty(shape)
    np.testing.assert_array_equal(restored, expected)
    assert got.dtype == np.int8 and steps.dtype == np.float32


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_codes_are_those_of_the_parameter(family: str, tmp_path: Path) -> None:
    opened = open_checkpoint(str(write_gguf(make_model(family), tmp_path / "m.gguf", kinds=KINDS)))
    kept = 0
    for name in opened.tensors:
        rows = opened.codes(name)
        assert (rows is not None) == opened.tensors[name].dtype.startswith(("Q8_0", "Q4_0"))
        if rows is not None:
            np.testing.assert_array_equal(rows.restore(), opened.read(name).numpy())
            kept += 1
    assert kept == 6 * opened.config.num_hidden_layers + 1


def test_other_tensors_have_no_codes(tmp_path: Path) -> None:
    kinds = {"exps": "Q8_0", "attn_q.weight": "Q4_1", "attn_k.weight": "F16"}
    opened = open_checkpoint(str(write_gguf(make_model("qwen3_moe"), tmp_path / "m.gguf", kinds=kinds)))
    assert not [name for name in opened.tensors if opened.codes(name) is not None]
    file = write_gguf(make_model("gpt2"), tmp_path / "gpt2.gguf", kinds={"ffn_up.weight": "Q8_0"})  # transposed
    opened = open_checkpoint(str(file))
    assert not [name for name in opened.tensors if opened.codes(name) is not None]


def test_a_scale_that_is_no_number(tmp_path: Path) -> None:
    file = write_gguf(make_model("llama"), tmp_path / "m.gguf", kinds={"attn_q": "Q8_0"})
    place = next(int(tensor.data_offset) for tensor in GGUFReader(file).tensors if tensor.name == "blk.1.attn_q.weight")
    content = bytearray(file.read_bytes())
    content[place : place + 2] = np.float16(np.inf).tobytes()
    file.write_bytes(content)
    rows = open_checkpoint(str(file)).codes("model.layers.1.self_attn.q_proj.weight")
    assert rows is not None
    with pytest.raises(ExportError, match=r"'model.layers.1.self_attn.q_proj.weight' holds NaN or infinity"):
        rows.load()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of codes of both types."""
    return write_gguf(make_model("llama"), tmp_path_factory.mktemp("gguf") / "m.gguf", kinds=KINDS)


def initializers(root: Path) -> list[np.ndarray]:
    """The tensors of an engine's graph."""
    model = onnx.load(root / "graphs/decoder.onnx")
    return [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("weights", ["float32:compute=float32", "int4:compute=float32"])
def test_an_engine_has_the_codes_of_the_file(weights: str, file: Path, tmp_path: Path) -> None:
    build(str(file), tmp_path / "e", Recipe(weights=parse_weights(weights), max_batch=2, max_context=64), "onnxruntime")
    stored = initializers(tmp_path / "e")
    opened = open_checkpoint(str(file))
    for name in (
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.embed_tokens.weight",
    ):
        rows = opened.codes(name)
        assert rows is not None
        codes, scales = store_codes(*rows.load(), rows.group_size, rows.bits, rows.group_size)
        assert any(np.array_equal(each.reshape(-1), codes.reshape(-1)) for each in stored if each.dtype == np.uint8), (
            name
        )
        assert any(np.array_equal(each.reshape(-1), scales.reshape(-1)) for each in stored), name
    if weights.startswith("float32"):
        prompt = list(range(3, 12))
        expected = load_reference(str(file), ()).generate(
            opened.read("model.embed_tokens.weight").new_tensor([prompt]).long(),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )
        with load(tmp_path / "e", threads=1) as llm:
            got = llm.generate([prompt], Sampling(max_tokens=12, ignore_eos=True))[0].token_ids
        assert list(got) == expected[0, len(prompt) :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "kept"), [("float32", False), ("float32:compute=float32", True), ("int8", True), ("int4", True)]
)
def test_numbers_are_not_less_exact_for_having_been_codes(weights: str, kept: bool, file: Path, tmp_path: Path) -> None:
    root = tmp_path / "e"
    root.mkdir()
    export(str(file), root, Recipe(weights=parse_weights(weights), max_batch=2, max_context=64))
    nodes = onnx.load(root / "graphs/decoder.onnx", load_external_data=False).graph.node
    products = [node for node in nodes if node.op_type == "MatMulNBits"]
    assert bool(products) is kept
    exact = {"float32": 1, "int8": 4}["int8" if weights.startswith("int") else "float32"]
    assert all(onnx.helper.get_node_attr_value(node, "accuracy_level") == exact for node in products)


def test_a_method_that_changes_weights_gets_numbers(file: Path) -> None:
    assert changes_weights((parse_method("lora:path=x"),)) and not changes_weights((parse_method("kvarn"),))
