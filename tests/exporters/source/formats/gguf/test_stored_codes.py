"""Tests of codes that are kept: those of the blocks, in the order of rows that the parameter has, up to the engine's graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, dequantize
from onnx import numpy_helper

from enginewright.exporters.build import build
from enginewright.exporters.export import export
from enginewright.exporters.methods.registry import changing
from enginewright.exporters.recipe import Recipe, parse_method, parse_weights
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.formats.gguf.stored_codes import CODE_TYPES, FACTORED, HALVES
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.exporters.weights.block_codes import store_codes
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.artifact.stored_codes import codes_lines
from enginewright.runtime.errors import ExportError
from enginewright.runtime.loader import load
from enginewright.runtime.requests.sampling import Sampling
from tests.support.exporters.gguf_files import make_model, write_gguf

KINDS = {
    "norm": "F32",
    "attn_q": "Q8_0",
    "attn_k": "Q8_0",
    "attn_v": "Q5_0",
    "attn_output": "Q4_1",
    "ffn_down": "Q4_0",
    "ffn": "Q5_1",
    "token": "Q5_1",
}


def test_the_types() -> None:
    assert {GGMLQuantizationType(kind).name for kind in CODE_TYPES} == {
        *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4"),
    }


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", CODE_TYPES)
@pytest.mark.parametrize("rows", [0, 1, 40])
def test_codes_give_the_librarys_numbers(kind: int, rows: int) -> None:
    """Every block of random bytes whose numbers the library gives as finite ones, bit for bit."""
    found = CODE_TYPES[kind]
    numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    content = np.random.default_rng(1).integers(0, 256, (rows, 2 * size)).astype(np.uint8)
    blocks = found.read(content.tobytes(), (rows, 2 * numbers), kind)
    minima = None if blocks.minima is None else blocks.minima
    quantised = QuantizedRows(
        bits=found.bits,
        group_size=found.group_size,
        load=lambda: (blocks.codes, blocks.scales),
        minima=None if minima is None else lambda: minima,
    )
    restored = quantised.restore()
    expected = dequantize(content, GGMLQuantizationType(kind)) if rows else np.empty((0, 2 * numbers), np.float32)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(restored[finite], expected[finite])
    assert finite.mean() > 0.8 if rows else True
    assert blocks.codes.dtype == np.int8 and blocks.scales.dtype == np.float32
    if found.scales == HALVES:
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(blocks.scales.astype(np.float16), blocks.scales)
    assert (blocks.factored is not None) == (found.scales == FACTORED)
    if blocks.factored is not None and rows:
        np.testing.assert_array_equal(blocks.factored.restore()[0], blocks.scales)
        assert blocks.factored.factors.shape == (rows, 4 if found.has_minima else 2)
    assert found.has_minima == (blocks.minima is not None)
    lowest = -(1 << (found.bits - 1))
    assert blocks.codes.min(initial=0) >= lowest and blocks.codes.max(initial=0) < -lowest


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_codes_are_those_of_the_parameter(family: str, tmp_path: Path) -> None:
    opened = open_checkpoint(str(write_gguf(make_model(family), tmp_path / "m.gguf", kinds=KINDS)))
    kept = 0
    for name in opened.tensors:
        rows = opened.codes(name)
        assert (rows is not None) == bool(opened.tensors[name].codes)
        if rows is not None:
            np.testing.assert_array_equal(rows.restore(), opened.read(name).numpy())
            kept += 1
    assert kept == 7 * opened.config.num_hidden_layers + 1


def test_scales_of_k_types_are_products_in_the_order_of_the_parameter(tmp_path: Path) -> None:
    """The rows of llama's queries and keys change places."""
    model = make_model("llama", hidden_size=256, num_attention_heads=4, num_key_value_heads=2)
    kinds = {"attn_q": "Q4_K", "attn_k": "Q6_K"}
    opened = open_checkpoint(str(write_gguf(model, tmp_path / "m.gguf", kinds=kinds)))
    for name in ("q_proj", "k_proj"):
        rows = opened.codes(f"model.layers.1.self_attn.{name}.weight")
        assert rows is not None and rows.factored is not None and not rows.halves
        scales, minima = rows.factored().restore()
        np.testing.assert_array_equal(scales, rows.load()[1])
        assert (minima is None) == (rows.minima is None)
        if minima is not None and rows.minima is not None:
            np.testing.assert_array_equal(minima, rows.minima())


def test_the_reason_where_codes_are_not_given(tmp_path: Path) -> None:
    file = write_gguf(make_model("gpt2"), tmp_path / "gpt2.gguf", kinds={"ffn_up.weight": "Q8_0"})
    opened = open_checkpoint(str(file))
    stored = opened.tensors["transformer.h.0.mlp.c_fc.weight"]
    assert stored.codes == "Q8_0" and stored.restored == "the model has it transposed"
    assert not [name for name in opened.tensors if opened.codes(name) is not None]


def test_experts_keep_their_codes(tmp_path: Path) -> None:
    kinds = {"exps": "Q4_1", "attn_q.weight": "Q5_1", "attn_k.weight": "F16"}
    opened = open_checkpoint(str(write_gguf(make_model("qwen3_moe"), tmp_path / "m.gguf", kinds=kinds)))
    model = build_skeleton(opened.config, attention="eager", max_context=16).model
    weights = bind_parameters(opened, model, restored="")
    experts = weights["model.layers.1.mlp.experts.gate_up_proj"]
    expected = opened.read("model.layers.1.mlp.experts.gate_up_proj").numpy()
    for number, part in enumerate(experts.parts):
        assert part.quantized is not None and part.stored is not None and part.stored.name == "Q4_1"
        assert part.form == (4, 32, 1, "minima", "")
        np.testing.assert_array_equal(part.load(), expected[number : number + 1])
        np.testing.assert_array_equal(part.transposed().squeezed().load(), expected[number].T)
    assert weights["model.layers.0.self_attn.q_proj.weight"].form == (5, 32, 1, "minima", "")
    assert weights["model.layers.0.self_attn.k_proj.weight"].stored is None


def test_a_scale_that_is_no_number(tmp_path: Path) -> None:
    file = write_gguf(make_model("llama"), tmp_path / "m.gguf", kinds={"attn_q": "Q8_0"})
    place = next(int(tensor.data_offset) for tensor in GGUFReader(file).tensors if tensor.name == "blk.1.attn_q.weight")
    content = bytearray(file.read_bytes())
    content[place : place + 2] = np.float16(np.inf).tobytes()
    file.write_bytes(content)
    rows = open_checkpoint(str(file)).codes("model.layers.1.self_attn.q_proj.weight")
    assert rows is not None
    with pytest.raises(ExportError, match=r"'blk.1.attn_q.weight' holds NaN or infinity"):
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
@pytest.mark.parametrize("compute", ["float32", "int8"])
def test_an_engine_has_the_codes_of_the_file(compute: str, file: Path, tmp_path: Path) -> None:
    recipe = Recipe(weights=parse_weights(f"stored:compute={compute},linear=onnxruntime"), max_batch=2, max_context=64)
    manifest = build(str(file), tmp_path / "e", recipe, "onnxruntime")
    layers = open_checkpoint(str(file)).config.num_hidden_layers
    assert {each["type"]: (each["matrices"], each["kept"]) for each in manifest.weights["codes"]} == {
        "Q4_0": (layers, "4 bits in blocks of 32"),
        "Q4_1": (layers, "4 bits in blocks of 32, with minima"),
        "Q5_0": (layers, "8 bits in blocks of 32"),
        "Q5_1": (2 * layers + 1, "8 bits in blocks of 32, with minima"),
        "Q8_0": (2 * layers, "8 bits in blocks of 32"),
    }
    stored = initializers(tmp_path / "e")
    opened = open_checkpoint(str(file))
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        rows = opened.codes(f"model.layers.1.{name}.weight")
        assert rows is not None
        bits = 4 if rows.bits == 4 else 8
        codes, scales = store_codes(*rows.load(), rows.group_size, bits, rows.group_size)
        assert any(np.array_equal(each.ravel(), codes.ravel()) for each in stored if each.dtype == np.uint8), name
        assert any(np.array_equal(each.ravel(), scales.ravel()) for each in stored), name
    if compute == "float32":
        prompt = list(range(3, 12))
        tokens = torch.tensor([prompt])
        reference = load_reference(str(file), ())
        expected = reference.generate(tokens, max_new_tokens=12, do_sample=False, pad_token_id=0)
        with load(tmp_path / "e", threads=1) as llm:
            got = llm.generate([prompt], Sampling(max_tokens=12, ignore_eos=True))[0].token_ids
            logits = llm.logits(prompt)
        assert list(got) == expected[0, len(prompt) :].tolist()
        with torch.no_grad():
            np.testing.assert_allclose(logits, reference(tokens).logits[0].numpy(), atol=2e-3 * np.abs(logits).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "products"), [("float32", set()), ("float32:compute=float32", set()), ("int8", {8}), ("int4", {4})]
)
def test_a_form_that_is_asked_for_quantises_anew(weights: str, products: set[int], file: Path, tmp_path: Path) -> None:
    root = tmp_path / "e"
    root.mkdir()
    manifest = export(str(file), root, Recipe(weights=parse_weights(weights), max_batch=2, max_context=64))
    nodes = onnx.load(root / "graphs/decoder.onnx", load_external_data=False).graph.node
    widths = {onnx.helper.get_node_attr_value(node, "bits") for node in nodes if node.op_type == "MatMulNBits"}
    assert widths == products
    kind = weights.partition(":")[0]
    assert {each["restored"] for each in manifest.weights["codes"]} == {f"--weights {kind} was asked for"}
    assert codes_lines(manifest.weights)[0].endswith(f"codes not kept: --weights {kind} was asked for")


def test_a_method_that_changes_weights_gets_numbers() -> None:
    assert changing((parse_method("lora:path=x"),)) == "lora" and not changing((parse_method("kvarn"),))
