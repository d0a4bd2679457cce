"""Tests of engines that are built from codes: they compute what the same numbers do, and have the codes of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from enginewright.exporters.export import export
from enginewright.exporters.recipe import Recipe, parse_weights
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.weights.block_codes import store_codes
from enginewright.runtime.artifact import directory
from enginewright.runtime.loader import load
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker
from tests.support.exporters.gguf_files import make_model
from tests.support.exporters.quantized_files import Stored, compress, group, weights

IDS = list(range(3, 43))
FLOAT = {"type": "float", "strategy": "group", "group_size": 32}
GROUPS = {
    "q": group("pack-quantized", ["re:.*q_proj"], weights(4, strategy="group", group_size=32)),
    "k": group("int-quantized", ["re:.*k_proj"], weights(8, strategy="channel")),
    "v": group("float-quantized", ["re:.*v_proj"], weights(8, type="float", strategy="tensor")),
    "o": group("nvfp4-pack-quantized", ["re:.*o_proj"], weights(4, type="float", strategy="tensor_group", group_size=16)),
    "gate": group("pack-quantized", ["re:.*gate_proj"], weights(3, strategy="group", group_size=16, symmetric=False)),
    "up": group("mxfp4-pack-quantized", ["re:.*up_proj"], weights(4, **FLOAT)),
    "down": group("pack-quantized", ["re:.*down_proj"], weights(4, strategy="group", group_size=16, actorder=None)),
    "head": group("mxfp6-pack-quantized", ["lm_head"], weights(6, **FLOAT)),
}  # fmt: skip
EXACT = Recipe(max_batch=2, max_context=64, kv_bits=32, weights=parse_weights("stored:compute=float32"))


def choose(module: str) -> str:
    """The group of a module, by the first part of its name."""
    last = module.rpartition(".")[2]
    return last.removesuffix("_proj") if last.endswith("_proj") else "head" * (last == "lm_head")


@pytest.fixture(scope="module")
def mixed(checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Stored, Path, Path]:
    """A checkpoint with a format for each kind of module and reordered columns, and its twin of numbers."""
    root = tmp_path_factory.mktemp("mixed")
    stored = compress(checkpoint("qwen3"), GROUPS, choose)
    stored.settings["config_groups"]["down"]["weights"]["actorder"] = "group"
    for name in [name for name in stored.twin if "down_proj" in name]:
        k = stored.twin[name].shape[1]
        order = torch.randperm(k, generator=torch.Generator().manual_seed(1))
        stored.tensors[f"{name}_g_idx"] = (torch.arange(k, dtype=torch.int32) // 16)[order]
        numbers = stored.tensors[f"{name}_packed"][..., None] >> torch.arange(0, 32, 4) & 15
        scales = stored.tensors[f"{name}_scale"][:, stored.tensors[f"{name}_g_idx"].long()]
        stored.twin[name] = (numbers.reshape(len(numbers), -1) - 8).float() * scales
    return stored, stored.write(root / "codes"), stored.write_twin(root / "numbers")


@pytest.mark.native
@pytest.mark.slow
def test_an_engine_computes_what_the_numbers_do(mixed: tuple[Stored, Path, Path], engine: EngineMaker) -> None:
    stored, codes, numbers = mixed
    found = {}
    for model in (codes, numbers):
        root, _ = engine(model, EXACT)
        with load(root, threads=1) as llm:
            found[model] = llm.logits(IDS)
    largest = np.abs(found[numbers]).max()
    assert np.abs(found[codes] - found[numbers]).max() <= 1e-5 * largest
    root, manifest = engine(codes, EXACT)
    told = {each["type"]: each for each in manifest.weights["codes"]}
    assert [name for name, each in told.items() if "restored" in each] == ["float8 with one scale"]
    assert sum(each["matrices"] for each in told.values()) == len(stored.twin)
    model = onnx.load(root / "graphs/decoder.onnx")
    kept = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    opened = open_checkpoint(str(codes))
    for name in stored.twin:
        if (rows := opened.codes(name)) is None:
            continue
        bits, size = (4 if rows.bits <= 4 else 8), min(rows.group_size, 64)
        packed, _ = store_codes(*rows.load(), rows.group_size, bits, size)
        assert any(each.dtype == np.uint8 and np.array_equal(each, packed) for each in kept), name


@pytest.mark.slow
def test_experts_stay_codes(tmp_path: Path) -> None:
    make_model("qwen3_moe").save_pretrained(tmp_path / "source")
    groups = {"group_0": group("pack-quantized", ["Linear"], weights(4, strategy="group", group_size=32))}
    stored = compress(tmp_path / "source", groups, lambda name: "group_0" * name.endswith("_proj"), ("lm_head",))
    model = stored.write(tmp_path / "m")
    (tmp_path / "e").mkdir()
    manifest = export(str(model), tmp_path / "e", EXACT)
    told = manifest.weights["codes"]
    assert {each["kept"] for each in told} == {"4 bits in blocks of 32"}
    assert sum(each["matrices"] for each in told) == len(stored.twin) == 2 * (4 + 4 * 3)
    nodes = onnx.load(tmp_path / "e/graphs/decoder.onnx", load_external_data=False).graph.node
    assert sum(node.op_type == "MatMulNBits" for node in nodes) >= 2 * 4 * 2


@pytest.mark.slow
def test_numbers_where_they_are_asked_for(mixed: tuple[Stored, Path, Path], tmp_path: Path) -> None:
    graphs = []
    for model in mixed[1:]:
        root = tmp_path / model.name
        root.mkdir()
        export(str(model), root, Recipe(max_batch=2, max_context=64, weights=parse_weights("float32")))
        graphs.append(onnx.load(root / "graphs/decoder.onnx").graph)
    assert len(graphs[0].initializer) == len(graphs[1].initializer) > 0
    for got, expected in zip(*(graph.initializer for graph in graphs), strict=True):
        assert got.name == expected.name
        np.testing.assert_array_equal(numpy_helper.to_array(got), numpy_helper.to_array(expected))  # -0 is 0
    told = directory.load(tmp_path / "codes").weights["codes"]
    assert all("restored" in each for each in told)
