"""Engines of quantised checkpoints: the codes of the files bit for bit, and the logits of the twins of numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM

from enginewright.exporters.build import build
from enginewright.exporters.export import export
from enginewright.exporters.recipe import Recipe, parse_method, parse_weights
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.loader import load
from tests.support.exporters.adapters import train_with_peft
from tests.support.exporters.families import save_checkpoint
from tests.support.exporters.gguf_files import make_model as make_gguf_model
from tests.support.exporters.mxfp4_files import EXPERTS, write_mxfp4
from tests.support.exporters.packed_checkpoints import (
    Integers,
    Parts,
    awq_parts,
    fp8_blocks,
    gptq_parts,
    random_integers,
    seed_of,
    write_twins,
)

TOKENS = (np.arange(40) * 7 % 250).tolist()
RECIPE = Recipe(kv_bits=32, max_batch=2, max_context=64, weights=parse_weights("stored:compute=float32"))
PROJECTIONS = ("_proj.weight",)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A checkpoint, its twin and the engine of the first."""

    packed: Path
    twin: Path
    engine: Path

    @property
    def codes(self) -> list[dict[str, Any]]:
        """What became of the codes, as the manifest says."""
        found: list[dict[str, Any]] = json.loads((self.engine / "manifest.json").read_text())["weights"]["codes"]
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """The tensors of the engine's graph."""
        graph = ir.load(self.engine / "graphs/decoder.onnx").graph
        return {
            name: value.const_value.numpy()
            for name, value in graph.initializers.items()
            if value.const_value is not None
        }

    def logits_differ_by(self) -> float:
        """The largest difference from the twin's logits under transformers, as a part of the largest of these."""
        with torch.no_grad():
            model = AutoModelForCausalLM.from_pretrained(self.twin, dtype=torch.float32, attn_implementation="eager")
            expected = model(input_ids=torch.tensor([TOKENS])).logits[0].numpy()
        with load(self.engine, threads=1) as llm:
            got = llm.logits(TOKENS)
        assert np.abs(expected).max() > 0.01
        return float(np.abs(got - expected).max() / np.abs(expected).max())


def packer(parts: Callable[[Integers], Parts], **options: Any) -> Any:
    """A function for `write_twins` that packs each matrix in the same way."""

    def pack(name: str, shape: tuple[int, ...]) -> tuple[Parts, np.ndarray]:
        made = random_integers(*shape[-2:], seed_of(name), **options)
        return parts(made), made.numbers

    return pack


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "checkpoint_format": "gptq"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
FP8 = {"quant_method": "fp8", "weight_block_size": [24, 40]}
INTEGERS = {"bits": 4, "group_size": 32}


def pack_fp8(name: str, shape: tuple[int, ...]) -> tuple[Parts, np.ndarray]:
    """Random float8 numbers in blocks."""
    numbers, scales, products = fp8_blocks(shape, seed_of(name), (24, 40))
    return {"weight": numbers, "weight_scale_inv": scales}, products


def made_of(root: Path, twins: tuple[Path, Path]) -> Made:
    """The engine of a checkpoint."""
    build(str(twins[0]), root / "engine", RECIPE, "onnxruntime", trial="none")
    return Made(packed=twins[0], twin=twins[1], engine=root / "engine")


@pytest.fixture(scope="module")
def gptq(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Reordered groups with zero points, of all matrices but the embedding."""
    root = tmp_path_factory.mktemp("gptq")
    save_checkpoint("qwen3", root / "model", vocab_size=256)
    twins = write_twins(
        root / "model",
        root,
        packer(gptq_parts, act_order=True, **INTEGERS),
        GPTQ,
        ends=(*PROJECTIONS, "lm_head.weight"),
    )
    return made_of(root, twins)


def stored_codes(made: Made, part: str, n: int) -> list[np.ndarray]:
    """The codes of 4 bits [n, k], counted from the lowest, of each matrix with n rows in the engine."""
    found = []
    for name, array in made.arrays().items():
        if name.endswith(part) and len(array) == n:
            flat = array.reshape(n, -1)
            found.append(np.stack([flat % 16, flat // 16], axis=-1).reshape(n, -1))
    return found


@pytest.mark.native
@pytest.mark.slow
def test_reordered_groups_give_the_twins_logits(gptq: Made) -> None:
    assert gptq.logits_differ_by() < 1e-5
    (codes,) = gptq.codes
    assert codes["type"] == "GPTQ of 4 bits in groups of 32" and codes["matrices"] == 15
    assert codes["kept"] == "4 bits in blocks of 32, with zero points, reordered"


@pytest.mark.native
@pytest.mark.slow
def test_the_engine_has_the_codes_of_the_file(gptq: Made) -> None:
    """Columns lie in the order of their groups; the order itself is in the engine, too."""
    for name, shape in (("model.layers.1.mlp.down_proj", (64, 96)), ("lm_head", (256, 64))):
        made = random_integers(*shape, seed_of(f"{name}.weight"), act_order=True, **INTEGERS)
        order = np.argsort(made.groups, kind="stable")
        assert any(np.array_equal(found, made.codes[:, order]) for found in stored_codes(gptq, ".codes", shape[0]))
        arrays = gptq.arrays()
        assert any(np.array_equal(array, order) for part, array in arrays.items() if part.endswith(".order"))
        scales = made.scales.astype(np.float32)
        assert any(np.array_equal(array, scales) for part, array in arrays.items() if part.endswith(".scales"))
        zeros = [found[:, : made.zeros.shape[1]] for found in stored_codes(gptq, ".zero_points", shape[0])]
        assert any(np.array_equal(found, made.zeros) for found in zeros)


@pytest.mark.native
@pytest.mark.slow
def test_projections_of_one_input_share_its_order(gptq: Made) -> None:
    """Each layer reorders the inputs of attention, of its output, of the gate and of the last product once."""
    nodes = ir.load(gptq.engine / "graphs/decoder.onnx").graph
    reordered = [node for node in nodes if node.op_type == "Gather" and (node.inputs[1].name or "").endswith(".order")]
    assert len(reordered) == 2 * 4 + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("apply", "weights", "reason"),
    [
        ("lora:path={adapter}", "stored", "lora changes weights"),
        ("piso:bits=4,group_size=32,sequences=2,length=32,work={work}", "stored", "piso changes weights"),
        ("kvarn", "int8", "--weights int8 was asked for"),
    ],
)
def test_matrices_that_a_method_changes_are_told_of(apply: str, weights: str, reason: str, tmp_path: Path) -> None:
    """Each of the 7 matrices of a layer is counted, whichever of them the method makes anew."""
    save_checkpoint("qwen3", tmp_path / "model", num_hidden_layers=1, vocab_size=256, head_dim=64)
    packed, twin = write_twins(tmp_path / "model", tmp_path, packer(gptq_parts, act_order=True, **INTEGERS), GPTQ)
    if "{adapter}" in apply:
        model = AutoModelForCausalLM.from_pretrained(twin, dtype=torch.float32)
        train_with_peft(model, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    method = parse_method(apply.format(adapter=tmp_path / "adapter", work=tmp_path / "work"))
    recipe = Recipe(max_batch=2, max_context=64, weights=parse_weights(weights), apply=(method,))
    (tmp_path / "engine").mkdir()
    codes = export(str(packed), tmp_path / "engine", recipe).weights["codes"]
    assert [each["matrices"] for each in codes] == [7] and {each["restored"] for each in codes} == {reason}


def write_moe(root: Path, pack: Any, settings: dict[str, Any]) -> tuple[Path, Path]:
    """A checkpoint of one layer with experts that are stored one by one."""
    make_gguf_model("qwen3_moe", num_hidden_layers=1).save_pretrained(root / "model")
    return write_twins(root / "model", root, pack, settings)


def test_experts_that_are_stored_one_by_one_have_halves_as_their_parts_have(tmp_path: Path) -> None:
    packed, _ = write_moe(tmp_path, packer(awq_parts, **INTEGERS), AWQ)
    opened = open_checkpoint(str(packed))
    weights = bind_parameters(
        opened, build_skeleton(opened.config, attention="eager", max_context=16).model, restored=""
    )
    for part in weights["model.layers.0.mlp.experts.gate_up_proj"].parts:
        assert part.quantized is not None and part.quantized.halves
        scales = part.quantized.load()[1]
        np.testing.assert_array_equal(scales.astype(np.float16), scales)


@pytest.mark.slow
def test_a_graph_of_standard_ops_gives_the_same_logits(gptq: Made, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, plugins="none")
    build(str(gptq.packed), tmp_path / "dense", recipe, "onnxruntime", trial="none")
    dense = dataclasses.replace(gptq, engine=tmp_path / "dense")
    assert dense.logits_differ_by() < 1e-5 and dense.codes == gptq.codes


@pytest.mark.native
@pytest.mark.slow
def test_awq_and_experts_that_are_stored_one_by_one_give_the_twins_logits(tmp_path: Path) -> None:
    made = made_of(tmp_path, write_moe(tmp_path, packer(awq_parts, **INTEGERS), AWQ))
    assert made.logits_differ_by() < 1e-5
    kept = "4 bits in blocks of 32, with zero points"
    assert [(codes["type"], codes["matrices"], codes["kept"]) for codes in made.codes] == [
        ("AWQ of 4 bits in groups of 32", 12, kept),
        ("AWQ of 4 bits in whole rows", 4, kept),
    ]
    layer = "model.layers.0."
    values = random_integers(32, 64, seed_of(f"{layer}self_attn.v_proj.weight"), **INTEGERS)
    assert any(np.array_equal(found[-32:], values.codes) for found in stored_codes(made, ".codes", 128))
    gate, up = (
        random_integers(32, 64, seed_of(f"{layer}mlp.experts.2.{half}_proj.weight"), **INTEGERS)
        for half in ("gate", "up")
    )
    expected = np.concatenate([gate.codes, up.codes])
    assert any(np.array_equal(found, expected) for found in stored_codes(made, ".codes", 64))


@pytest.mark.parametrize("case", ["gptq", "fp8"])
def test_experts_that_are_stored_one_by_one_are_those_of_the_twin(case: str, tmp_path: Path) -> None:
    pack, settings = {"gptq": (packer(gptq_parts, act_order=True, **INTEGERS), GPTQ), "fp8": (pack_fp8, FP8)}[case]
    got, expected = (bind(path) for path in write_moe(tmp_path, pack, settings))
    assert got.keys() == expected.keys()
    experts = [name for name, weight in got.items() if len(weight.shape) == 3]
    assert len(experts) == 2
    for name, weight in got.items():
        np.testing.assert_array_equal(weight.load(), expected[name].load(), err_msg=name)
    for name in experts:
        for part, values in zip(got[name].parts, expected[name].parts, strict=True):
            assert (part.quantized is not None) == (case == "gptq") and part.stored is not None
            np.testing.assert_array_equal(part.load(), values.load())
            assert part.stored.restored == ("" if case == "gptq" else "its numbers are float8")


def bind(model: Path) -> dict[str, Weight]:
    """The parameters of a checkpoint, with their codes."""
    opened = open_checkpoint(str(model))
    return bind_parameters(opened, build_skeleton(opened.config, attention="eager", max_context=64).model, restored="")


@pytest.mark.parametrize("case", ["one has zero points", "orders differ"])
def test_halves_of_an_expert_whose_codes_differ(case: str, tmp_path: Path) -> None:
    """A half without zero points gets some that change nothing; halves in two orders become numbers."""

    def pack(name: str, shape: tuple[int, ...]) -> tuple[Parts, np.ndarray]:
        is_gate = name.endswith("gate_proj.weight")
        made = random_integers(*shape, seed_of(name), symmetric=is_gate and case == "one has zero points", **INTEGERS)
        if is_gate and case == "orders differ":
            made.groups[:] = made.groups[::-1].copy()
        return gptq_parts(made), made.numbers

    got, expected = (bind(path) for path in write_moe(tmp_path, pack, GPTQ))
    name = "model.layers.0.mlp.experts.gate_up_proj"
    for part, values in zip(got[name].parts, expected[name].parts, strict=True):
        np.testing.assert_array_equal(part.load(), values.load())
        assert part.stored is not None
        if case == "orders differ":
            assert (
                part.quantized is None and part.stored.restored == "it is made of tensors with codes of several kinds"
            )
        else:
            assert part.quantized is not None and part.quantized.offset == "zero_points"


def graph_hash(model: Path, root: Path) -> dict[str, str]:
    """The hash of each file of the graph that an export makes."""
    root.mkdir()
    export(str(model), root, RECIPE)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (root / "graphs").iterdir()}


@pytest.mark.slow
def test_float8_gives_the_twins_engine(tmp_path: Path) -> None:
    save_checkpoint("qwen3", tmp_path / "model", num_hidden_layers=1)
    packed, twin = write_twins(tmp_path / "model", tmp_path, pack_fp8, FP8)
    assert graph_hash(packed, tmp_path / "a") == graph_hash(twin, tmp_path / "b")
    codes = json.loads((tmp_path / "a/manifest.json").read_text())["weights"]["codes"]
    assert {each["restored"] for each in codes} == {"its numbers are float8"}
    assert sum(each["matrices"] for each in codes) == 7


@pytest.mark.native
@pytest.mark.slow
def test_experts_in_mxfp4_give_the_twins_logits(tmp_path: Path) -> None:
    packed, twin = write_mxfp4(tmp_path)
    made = made_of(tmp_path, (packed, twin))
    assert made.logits_differ_by() < 1e-5
    size = 96 * 64 * 3  # of an expert
    assert made.codes == [{"type": "MXFP4", "matrices": 16, "weights": 8 * size, "kept": "8 bits in blocks of 32"}]
    rows = open_checkpoint(str(packed)).codes(EXPERTS, 3)
    assert rows is not None
    expected = rows.load()[0].astype(np.int16) + 128
    found = [
        array.reshape(192, -1) for name, array in made.arrays().items() if name.endswith(".codes") and len(array) == 192
    ]
    assert any(np.array_equal(array, expected) for array in found)
