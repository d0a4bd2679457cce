"""Tests of graphs of standard ops (`plugins none`): every family against PyTorch and against the packed engines' tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from enginewright.exporters.build import build
from enginewright.exporters.export import export
from enginewright.exporters.parity import compare
from enginewright.exporters.passes.lower_to_standard import LowerToStandardPass
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.weights.registry import choose_storage
from enginewright.plugins.oracles.greedy_sample import greedy_sample
from enginewright.runtime import Sampling, UnsupportedError, load
from tests.support.exporters.families import FAMILIES, save_checkpoint
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker
from tests.support.paths import EXAMPLES

pytestmark = [pytest.mark.native, pytest.mark.slow]

STANDARD = Recipe(plugins="none")


@pytest.mark.parametrize("family", FAMILIES)
def test_engine_equals_model(family: str, checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    model = checkpoint(family)
    root, _ = engine(model, STANDARD)
    with load(root, threads=2, prefill_chunk=64) as llm:
        parity = compare(llm, load_reference(str(model), ()), new_tokens=40)
    assert parity.tokens > 500
    assert parity.max_error < 1e-5  # the order of float32 sums alone
    assert not parity.unexplained, "greedy tokens part at something else than a tie"


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])  # a softcap, and sinks: attention written as products
def test_engine_equals_model_with_wide_logits(family: str, engine: EngineMaker, tmp_path: Path) -> None:
    save_checkpoint(family, tmp_path / "model", gain=6.0)
    root, _ = engine(tmp_path / "model", STANDARD)
    with load(root, threads=2) as llm:
        parity = compare(llm, load_reference(str(tmp_path / "model"), ()), new_tokens=30)
    assert parity.logit_range > 3, "the case is meant to have wide logits"
    assert parity.max_error < 2e-4
    assert not parity.unexplained


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=60), Sampling(max_tokens=60, temperature=0.9, seed=3)])
def test_tokens_are_the_packed_engine_s(sampling: Sampling, checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    """More requests than rows, prompts longer than a chunk and of one token, rows that idle while others run."""
    rng = np.random.default_rng(5)
    prompts = [rng.integers(3, 250, length).tolist() for length in (1, 90, 33, 7, 150, 2, 64)]
    packed, _ = engine(checkpoint("qwen3"), Recipe(kv_bits=32))
    standard, _ = engine(checkpoint("qwen3"), STANDARD)
    with load(packed, threads=2) as llm:
        wanted = [completion.token_ids for completion in llm.generate(prompts, sampling)]
    with load(standard, threads=2, max_batch=3, prefill_chunk=40) as llm:
        assert llm.capacity.rows == 3
        assert [completion.token_ids for completion in llm.generate(prompts, sampling)] == wanted


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_quantised_weights(weights: str, checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    ids = np.random.default_rng(2).integers(3, 250, 70).tolist()
    storage = choose_storage(weights, {"compute": "float32"})
    packed, _ = engine(checkpoint("llama"), Recipe(kv_bits=32, weights=storage))
    standard, _ = engine(checkpoint("llama"), Recipe(plugins="none", weights=storage))
    with load(packed, threads=1) as one, load(standard, threads=1) as other:
        np.testing.assert_allclose(other.logits(ids), one.logits(ids), atol=1e-5)


def test_a_half_graph_needs_no_engine_on_the_cpu(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    """ONNX Runtime runs the graph as it was exported, and makes weights float32 when it loads it."""
    recipe = Recipe(plugins="none", dtype="float16", max_context=64)
    manifest = build(str(checkpoint("llama")), tmp_path / "engine", recipe, "onnxruntime")
    assert manifest.graphs["decoder"].engines == () and manifest.dtype == "float16"
    with load(tmp_path / "engine") as llm:
        assert len(llm.generate([5, 6, 7], Sampling(max_tokens=3, ignore_eos=True))[0].token_ids) == 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str, checkpoint: CheckpointMaker, engine: EngineMaker, tmp_path: Path) -> None:
    """A half graph runs on ONNX Runtime's CPU, which casts; a bfloat16 graph is refused there, and valid ONNX."""
    ids = np.random.default_rng(3).integers(3, 250, 80).tolist()
    manifest = export(str(checkpoint("qwen3")), tmp_path, Recipe(plugins="none", dtype=dtype))
    onnx.checker.check_model(str(tmp_path / "graphs/decoder.onnx"), full_check=True)
    assert {spec.dtype for spec in manifest.graphs["decoder"].inputs if spec.name.startswith("kv.")} == {dtype}
    if dtype == "bfloat16":
        with pytest.raises(UnsupportedError, match=r"graph in bfloat16, .* build with --dtype float16 or float32"):
            load(tmp_path)
        return
    exact, _ = engine(checkpoint("qwen3"), STANDARD)
    with load(exact, threads=1) as wide, load(tmp_path, threads=1) as narrow:
        assert np.abs(narrow.logits(ids) - wide.logits(ids)).max() < 5e-3  # halves, and logits below 2


def test_graph(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    """Only standard ops, the signature as documented, one mask for all layers of a window."""
    manifest = export(str(checkpoint("gemma3_text")), tmp_path, STANDARD)
    graph = ir.load(tmp_path / "graphs/decoder.onnx").graph
    assert {node.domain for node in graph} == {""}
    assert manifest.graphs["decoder"].ops == {}
    length = manifest.limits.max_context
    shapes = {spec.name: spec.shape for spec in manifest.graphs["decoder"].inputs}
    heads, size = manifest.cache.layers[0].kv_heads, manifest.cache.layers[0].key_dim
    caches = {f"kv.{i}.{side}" for i in range(len(manifest.cache.layers)) for side in ("key", "value")}
    assert shapes == {
        "input_ids": ("B", "T"),
        "position_ids": ("B", "T"),
        "past_lens": ("B",),
        "sample_rows": ("N",),
        **dict.fromkeys(caches, ("B", heads, length, size)),
    }
    outputs = manifest.graphs["decoder"].outputs
    assert {spec.alias for spec in outputs if spec.alias is not None} == caches
    assert (manifest.cache.kind, manifest.cache.tile_tokens, manifest.cache.kv_bits) == ("dense", length, 32)
    attention = [node for node in graph if node.op_type == "Attention"]
    masks = {node.inputs[3] for node in attention}
    assert len(attention) == len(manifest.cache.layers) and len(masks) == 2  # windowed layers' and none


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_greedy_token_of_logits_that_are_not_finite(bad: float, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    """The result of GreedySample: -1 for a NaN anywhere and for an infinite maximum; an infinitely low logit is never chosen."""
    export(str(checkpoint("llama")), tmp_path, Recipe())
    model = ir.load(tmp_path / "graphs/decoder.onnx")
    LowerToStandardPass(64)(model)
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    tokens = next(value for value in model.graph.outputs if value.name == "greedy_tokens")
    part = ir.convenience.extract(model.graph, [logits], [tokens])
    session = ort.InferenceSession(
        ir.to_proto(ir.Model(part, ir_version=10)).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    values = np.random.default_rng(0).standard_normal((5, 250)).astype(np.float32)
    values[1, 249] = values[3, 0] = bad
    values[2, [7, 100]] = 9.0  # equals: the lowest
    (got,) = session.run(None, {"logits": values})
    assert got.tolist() == greedy_sample(values).tolist()


@pytest.mark.parametrize(
    ("spec", "found"), [("kvarn", "a kvarn cache"), (f"clp:heads={EXAMPLES / 'tiny-reasoner-clp'}", "ClpEmit")]
)
def test_what_standard_ops_do_not_express_is_refused(spec: str, found: str, tmp_path: Path) -> None:
    message = (
        f"plugins none: got {found}, which standard ops do not express; build without what adds it, or with plugins"
    )
    with pytest.raises(UnsupportedError, match=message):
        export(str(EXAMPLES / "tiny-reasoner"), tmp_path, Recipe(plugins="none", apply=(parse_method(spec),)))
    assert not any(tmp_path.iterdir())


def packed_model(nodes: str, inputs: str) -> ir.Model:
    """A graph without attention that has the packed inputs, and `inputs` in addition."""
    text = f"""
        <ir_version: 10, opset_import: ["" : 23]>
        decoder (
            int64[T] input_ids, int64[T] position_ids, int32[B1] query_starts, int64[N] sample_rows,
            int32[2, B, 2] kv_lens, int32[2, B, 2, M] tile_table, {inputs}
        ) => (float[T, 8] logits)
        <float[5, 8] embed = {{{", ".join("0" for _ in range(40))}}}> {{ {nodes} }}
    """
    return ir.from_proto(onnx.parser.parse_model(text))


def test_what_a_condition_tells_each_token_is_a_rectangle() -> None:
    nodes = """
        embedded = Gather(embed, input_ids)
        vectors = Gather(cond_steer_vector, cond_steer_index)
        kinds = Gather(cond_tone_vector, cond_tone_index)
        sums = ReduceSum<keepdims = 1>(kinds)
        steered = Add(embedded, vectors)
        logits = Add(steered, sums)
    """
    inputs = "int32[T] cond_steer_index, float[3, 8] cond_steer_vector, int32[B] cond_tone_index, float[3, 8] cond_tone_vector"
    model = packed_model(nodes, inputs)
    for value in model.graph.inputs:
        if value.name is not None and value.name.startswith("cond_"):
            value.name = value.name.replace("_", ".")  # the text form has no names with dots
    LowerToStandardPass(16)(model)
    shapes = {value.name: value.shape for value in model.graph.inputs}
    assert shapes["cond.steer.index"] == ("B", "T") and shapes["cond.tone.index"] == ("B",)
    assert shapes["cond.steer.vector"] == (3, 8)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        "input_ids": np.array([[1, 2], [3, 4]]),
        "position_ids": np.array([[0, 1], [0, 1]]),
        "past_lens": np.zeros(2, np.int64),
        "sample_rows": np.zeros(1, np.int64),
        "cond.steer.index": np.array([[0, 2], [1, 1]], np.int32),
        "cond.tone.index": np.zeros(2, np.int32),
        "cond.steer.vector": rng.standard_normal((3, 8), np.float32),
        "cond.tone.vector": np.zeros((3, 8), np.float32),
    }
    (found,) = session.run(["logits"], feeds)
    np.testing.assert_array_equal(found, feeds["cond.steer.vector"][[0, 2, 1, 1]])


def test_a_node_that_reads_a_packed_table_is_refused() -> None:
    nodes = "embedded = Gather(embed, input_ids) counts = Cast<to = 1>(query_starts) total = ReduceSum(counts) logits = Add(embedded, total)"
    model = packed_model(nodes, "float[1] cond_none")
    with pytest.raises(
        UnsupportedError, match=r"plugins none: got query_starts as an input of Cast, .*build without what adds it"
    ):
        LowerToStandardPass(16)(model)
