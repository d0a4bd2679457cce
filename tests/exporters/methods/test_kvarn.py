"""Tests of the method kvarn end to end: refusals, written files, and engines against the oracle inside PyTorch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from enginewright.exporters.build import build
from enginewright.exporters.methods.kvarn import Config
from enginewright.exporters.methods.kvarn.fold_value_rotation import transform
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.plugins.oracles.kvarn import hadamard, record_bytes
from enginewright.runtime import Sampling
from enginewright.runtime.errors import ExportError, UnsupportedError
from enginewright.runtime.loader import load
from tests.support.exporters.families import make_model, save_checkpoint
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker
from tests.support.exporters.kvarn_reference import oracle_logits, plain_logits

TOKENS = 430  # three tiles and a piece: the first, two encoded ones, the newest
GAIN = 3.0  # of the random weights: keys that differ enough for a wrong scale to show


def kvarn(**options: Any) -> Recipe:
    """A recipe with the method and float32 weights."""
    return Recipe(apply=(Applied("kvarn", Config(**options)),), max_batch=4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kvarn:k_bits=3", "got k_bits=3, expected 2, 4 or 8; the nearest is k_bits=4"),
        ("kvarn:v_bits=16", "got v_bits=16, expected 2, 4 or 8; the nearest is v_bits=8"),
        ("kvarn:v_bits=1", "got v_bits=1, expected 2, 4 or 8; the nearest is v_bits=2"),
        ("kvarn:mode=fast", "kvarn.mode: got 'fast', expected one of 'release', 'robust'|mode='fast'"),
        ("kvarn:iterations=-1", "got iterations=-1, expected 0 to 64"),
        ("kvarn:bits=4", "kvarn: unknown key 'bits'; known: k_bits, v_bits, mode, iterations, windowed"),
        ("kvarn:exact_layers=-1", "got exact_layers=-1, expected 0 or more"),
    ],
)
def test_options_that_are_not_offered(spec: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        parse_method(spec)


@pytest.mark.parametrize(
    ("family", "changes", "recipe", "message"),
    [
        ("llama", {}, kvarn(), "llama: layer 0: got head_dim 10, expected a power of two from 16 to 512"),
        ("mistral", {}, kvarn(), r"mistral: layer 0: got a window of 20 tokens, expected at least 128.*windowed=false"),
        ("qwen2", {}, dataclasses.replace(kvarn(), kv_bits=32), "got --kv-bits 32, expected 16"),
    ],
)
def test_models_that_it_cannot_hold(
    family: str, changes: dict[str, Any], recipe: Recipe, message: str, tmp_path: Path
) -> None:
    save_checkpoint(family, tmp_path / "model", **changes)
    with pytest.raises((ExportError, UnsupportedError), match=message):
        build(str(tmp_path / "model"), tmp_path / "engine", recipe, "onnxruntime")
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("size", [16, 64, 256])
def test_the_fast_transform_is_the_hadamard_matrix(size: int) -> None:
    x = np.random.default_rng(size).standard_normal((3, 2, size)).astype(np.float32)
    np.testing.assert_allclose(transform(x), x @ hadamard(size), atol=1e-5)
    np.testing.assert_allclose(transform(transform(x)), x, atol=1e-5)


@pytest.mark.native
@pytest.mark.slow
def test_the_manifest_tells_the_cache(checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    _, manifest = engine(checkpoint("qwen3"), kvarn(k_bits=8, v_bits=4))
    assert (manifest.cache.kind, manifest.cache.kv_bits) == ("kvarn", 16)
    assert {layer.tile_bytes for layer in manifest.cache.layers} == {record_bytes(32, TILE_TOKENS, 8, 4)}
    assert {layer.exact_bytes for layer in manifest.cache.layers} == {TILE_TOKENS * 2 * 32 * 2}
    assert manifest.applied[0] == {
        "name": "kvarn", "k_bits": 8, "v_bits": 4, "mode": "release", "iterations": 8, "windowed": True, "exact_layers": 0
    }  # fmt: skip
    decoder = manifest.graphs["decoder"]
    assert decoder.ops == {"GreedySample": 1, "KVarNAttention": 1}
    named = {spec.name: spec for spec in (*decoder.inputs, *decoder.outputs)}
    assert named["kv.1.exact"].shape == ("slots", 2, "exact", 2 * TILE_TOKENS * 32)
    assert (named["kv.1.exact"].dtype, named["kv.1.exact.out"].alias) == ("float16", "kv.1.exact")


@pytest.mark.native
@pytest.mark.slow
def test_windowed_layers_may_stay_as_they_are(checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    _, manifest = engine(checkpoint("gemma2"), kvarn(windowed=False))
    assert [bool(layer.exact_bytes) for layer in manifest.cache.layers] == [False, True]
    assert set(manifest.graphs["decoder"].ops) == {"GreedySample", "KVarNAttention", "PagedAttention"}


@pytest.mark.native
@pytest.mark.slow
def test_first_layers_may_stay_as_they_are(checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    _, manifest = engine(checkpoint("qwen3"), kvarn(exact_layers=1))
    assert [bool(layer.exact_bytes) for layer in manifest.cache.layers] == [False, True]


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize(("family", "folded"), [("qwen2", True), ("qwen3", True), ("gemma2", True), ("phi3", False)])
def test_the_rotation_of_values_moves_into_the_weights(
    family: str, folded: bool, checkpoint: CheckpointMaker, engine: EngineMaker
) -> None:
    """phi3's projection is one matrix for all three, cut afterwards, so it keeps the rotation in the op."""
    root, manifest = engine(checkpoint(family), kvarn(windowed=False))
    nodes = [n for n in ir.load(root / manifest.graphs["decoder"].files[0].path).graph if n.op_type == "KVarNAttention"]
    assert nodes and {node.attributes.get_int("rotate_values", 1) for node in nodes} == {int(not folded)}


FAMILY_CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("qwen2", {}, {}),
    ("qwen3", {}, {"k_bits": 2, "v_bits": 2}),
    ("qwen3", {}, {"k_bits": 4, "v_bits": 4, "mode": "robust"}),
    ("phi3", {}, {"k_bits": 8, "v_bits": 8, "iterations": 0}),
    ("gemma2", {"sliding_window": 150}, {}),
    ("gpt_oss", {"sliding_window": 200}, {}),
    ("helium", {}, {}),
]


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize(("family", "changes", "options"), FAMILY_CASES)
def test_engine_equals_the_oracle_in_the_model(
    family: str, changes: dict[str, Any], options: dict[str, Any], checkpoint: CheckpointMaker, engine: EngineMaker
) -> None:
    root, _ = engine(checkpoint(family, gain=GAIN, **changes), kvarn(**options))
    tokens = np.random.default_rng(1).integers(3, 250, TOKENS).tolist()
    model = make_model(family, gain=GAIN, **changes)
    expected, exact = oracle_logits(model, tokens, Config(**options)), plain_logits(model, tokens)
    with load(root, threads=1) as llm:
        got = llm.logits(tokens)
    error, effect = np.abs(got - expected).max(), np.abs(exact - expected).max()
    # sums in another order round a few codes the other way; without the method's effect the error would be `effect`
    assert error < max(0.1 * effect, 1e-3)
    assert effect > 1e-3


@pytest.mark.native
@pytest.mark.slow
def test_neighbours_and_reused_prompts_change_nothing(checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    """Other requests, and tiles that were computed for another request, never change a request's tokens."""
    root, _ = engine(checkpoint("qwen3"), kvarn(k_bits=2, v_bits=2))
    rng = np.random.default_rng(3)
    shared = rng.integers(3, 250, 300).tolist()
    prompts = [shared[:n] + rng.integers(3, 250, m).tolist() for n, m in ((0, 5), (300, 30), (260, 100), (300, 1))]
    sampling = Sampling(max_tokens=100, ignore_eos=True)
    with load(root, threads=1, prefill_chunk=128, prefix_reuse=False) as llm:
        alone = [llm.generate([prompt], sampling)[0] for prompt in prompts]
    with load(root, threads=1, prefill_chunk=128) as llm:
        together = llm.generate(prompts, sampling)
        again = llm.generate(prompts[::-1], sampling)[::-1]
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]
    assert [each.token_ids for each in again] == [each.token_ids for each in alone]
    assert {each.reused_tokens for each in alone} == {0}
    assert [each.reused_tokens for each in again] == [0, 256, 256, 256]
