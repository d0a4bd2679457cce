"""Tests of every family end to end: its engine against transformers' eager model, on prompts of uneven length in flight."""

from __future__ import annotations

import collections

import onnx_ir as ir
import pytest

from enginewright.exporters.parity import compare
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.source.reference import load_reference
from enginewright.runtime.loader import load
from tests.support.exporters.families import FAMILIES, save_checkpoint
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker

# Largest logit error. Float32 differs by the order of sums alone, 1e-6 here. Cached halves carry 2^-11 of relative error
# through every layer: up to 6e-4 here (gemma3_text), where logits reach 1.
TOLERANCE = {32: 1e-5, 16: 1e-3}


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("kv_bits", [32, 16])
@pytest.mark.parametrize("family", FAMILIES)
def test_engine_equals_model(family: str, kv_bits: int, checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    model = checkpoint(family)
    root, _ = engine(model, Recipe(kv_bits=kv_bits))
    with load(root, threads=2, prefill_chunk=64) as llm:  # prompts of 129 and 200 tokens come in chunks
        parity = compare(llm, load_reference(str(model), ()), new_tokens=200)
    assert parity.tokens > 1000
    assert parity.max_error < TOLERANCE[kv_bits]
    assert not parity.unexplained, "greedy tokens part at something else than a tie"


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt_oss"])
def test_engine_equals_model_with_wide_logits(
    family: str, engine: EngineMaker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = tmp_path_factory.mktemp("wide") / family
    save_checkpoint(family, model, gain=6.0)
    root, _ = engine(model, Recipe(kv_bits=32))
    with load(root, threads=2) as llm:
        parity = compare(llm, load_reference(str(model), ()), new_tokens=50)
    assert parity.logit_range > 3, "the case is meant to have wide logits"
    assert parity.max_error < 2e-4
    assert not parity.unexplained


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3"])
def test_graph_is_lean(family: str, checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    """The graph has no copy of a tensor that another layout or a constant could avoid."""
    root, manifest = engine(checkpoint(family), Recipe(kv_bits=32))
    path = root / manifest.graphs["decoder"].files[0].path
    assert b".py" not in path.read_bytes(), "no stack trace of the exporting machine"
    graph = ir.load(path).graph
    counts = collections.Counter(node.op_type for node in graph)
    layers = len(manifest.cache.layers)
    assert counts["Transpose"] == 0
    assert counts["PagedAttention"] == layers
    assert counts["RotaryEmbedding"] == 2 * layers
    assert counts["MatMul"] + counts["Gemm"] == 4 * layers + 1, "projections of one input run as one product"
    assert counts["RMSNormalization"] >= 2 * layers + 1
    assert counts["Pow"] == counts["ReduceMean"] == 0
