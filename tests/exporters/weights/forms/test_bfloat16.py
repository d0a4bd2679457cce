"""Tests of weights in bfloat16: logits next to torch's, what is stored, and who is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe, parse_weights
from enginewright.runtime import cli
from enginewright.runtime.artifact import directory
from enginewright.runtime.errors import ExportError
from enginewright.runtime.loader import load
from tests.support.exporters.families import make_model, save_checkpoint

IDS = list(range(3, 43))


def logits_of(family: str, root: Path, weights: str) -> np.ndarray:
    """Of the tokens IDS, by an engine that is built in `root`."""
    save_checkpoint(family, root / "model", gain=3.0)
    recipe = Recipe(weights=parse_weights(weights), kv_bits=32)
    build(str(root / "model"), root / "engine", recipe, "onnxruntime")
    with load(root / "engine", threads=1) as llm:
        return llm.logits(IDS)


def rounded_logits(family: str) -> np.ndarray:
    """The same by torch, with matrices rounded to bfloat16; a router, whose name ends in "gate", is not."""
    model = make_model(family, gain=3.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and not name.endswith("gate.weight"):
                parameter.copy_(parameter.bfloat16())
        result: np.ndarray = model(torch.tensor([IDS])).logits[0].numpy()
    return result


def node_types(engine: Path) -> Counter[str]:
    """How many nodes of each type the decoder's graph has."""
    return Counter(node.op_type for node in ir.load(engine / "graphs" / "decoder.onnx").graph)


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3_text"])
def test_logits_with_exact_activations_are_those_of_torch_with_rounded_weights(family: str, tmp_path: Path) -> None:
    expected = rounded_logits(family)
    got = logits_of(family, tmp_path, "bfloat16:compute=float32")
    np.testing.assert_allclose(got, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max())), rtol=0)
    plain = make_model(family, gain=3.0)(torch.tensor([IDS])).logits[0].detach().numpy()
    assert np.abs(expected - plain).max() > 1e-3, "what rounding the weights changes is seen"


@pytest.mark.slow
@pytest.mark.native
def test_rounded_activations_leave_an_error_of_the_size_of_their_last_bit(tmp_path: Path) -> None:
    expected = rounded_logits("qwen2")
    error = np.abs(logits_of("qwen2", tmp_path, "bfloat16") - expected).max() / np.abs(expected).max()
    assert 1e-5 < error < 2.0**-5


@pytest.mark.native
@pytest.mark.parametrize(
    ("options", "products", "lookups", "others"),
    [("", 9, 1, 1), (":embedding=false", 9, 0, 2), (":lm_head=false", 8, 1, 2)],
)
def test_a_tied_matrix_is_stored_once_and_each_option_leaves_one_use_as_it_is(
    options: str, products: int, lookups: int, others: int, tmp_path: Path
) -> None:
    logits_of("qwen2", tmp_path, f"bfloat16{options}")
    types = node_types(tmp_path / "engine")
    kinds = ("BlockLinear", "BlockLookup")
    assert tuple(types[kind] for kind in kinds) == (products, lookups)
    assert types["Gather"] + types["MatMul"] + types["Gemm"] == others, "one picks rows of logits"


@pytest.mark.native
def test_what_an_engine_tells_of_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logits_of("llama", tmp_path, "bfloat16")
    assert cli.main(["inspect", str(tmp_path / "engine"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == {
        "kind": "bfloat16",
        "compute": "bfloat16",
        "embedding": True,
        "lm_head": True,
        "dtype": "float32",
        "max_kl": 1e-2,
    }
    assert directory.load(tmp_path / "engine").dtype == "float32", "the type that the graph computes in"


@pytest.mark.parametrize(
    "recipe", [{"plugins": "none"}, {"dtype": "bfloat16"}, {"dtype": "float16", "plugins": "none"}]
)
def test_a_graph_that_is_not_for_cpus_is_refused(recipe: dict[str, str], tmp_path: Path) -> None:
    save_checkpoint("qwen2", tmp_path / "model")
    with pytest.raises(
        ExportError, match=r"got bfloat16 and a graph that is not float32 with our ops, .*; do --dtype bfloat16"
    ):
        build(
            str(tmp_path / "model"),
            tmp_path / "engine",
            Recipe(weights=parse_weights("bfloat16"), **recipe),
            "tensorrt",
        )


def test_other_types_of_activations_are_refused() -> None:
    with pytest.raises(ExportError, match="weights"):
        parse_weights("bfloat16:compute=int8")
