"""Tests of the method clp end to end: refusals, written files, and graphs against the oracle on PyTorch's states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from enginewright.exporters.build import build
from enginewright.exporters.methods.clp.head_set import CONFIG, WEIGHTS
from enginewright.exporters.methods.clp.method import Config
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.recipe import Recipe, parse_method, parse_weights
from enginewright.exporters.weights.block_codes import quantize_rows
from enginewright.plugins.libraries.locate import ort_library
from enginewright.plugins.oracles.clp_emit import clp_emit
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.errors import ExportError
from tests.support.exporters.clp_sets import random_set
from tests.support.exporters.fixtures import CheckpointMaker


def clp(root: Path, weights: str = "float32", **options: Any) -> Recipe:
    """A recipe with the method and a 32-bit cache."""
    applied = (Applied("clp", Config(heads=str(root), **options)),)
    return Recipe(apply=applied, weights=parse_weights(weights), kv_bits=32, max_batch=4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("clp:heads=x,tau=0", "got tau=0.0, expected more than 0 and at most 1"),
        ("clp:heads=x,tau=1.01", "got tau=1.01, expected more than 0 and at most 1"),
        ("clp:heads=x,tau=nan", "got tau=nan, expected more than 0"),
        ("clp:heads=x,k=1", "got k=1, expected 2 or more"),
        ("clp:heads=x,storage=int4", "clp.storage: got 'int4', expected one of 'float32', 'int8'"),
        ("clp:tau=0.3", "key 'heads' is missing"),
        ("clp:heads=x,head=1", "unknown key 'head'; known: heads, tau, k, storage, verify"),
    ],
)
def test_options_that_are_not_offered(spec: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        parse_method(spec)


def change_config(root: Path, **changes: Any) -> None:
    """Edit the set's config."""
    raw = json.loads((root / CONFIG).read_text())
    raw["shape"] |= changes.pop("shape", {})
    (root / CONFIG).write_text(json.dumps(raw | changes))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"k": 4}, "clp: got k=4, expected at most 3: .* has 2 heads"),
        ({"format": 2}, {}, "got format 2, expected 1; train the heads again"),
        ({"shape": {"k": 4}}, {}, r"heads.2.up.weight: got no such tensor, expected \[32, 64\]"),
        ({"shape": {"k": 40}}, {}, "got k 40 and sizes .* expected k from 2 to 16"),
        ({"shape": {"head_hidden": 31}}, {}, r"heads.0.up.weight: got shape \[32, 64\], expected \[31, 64\]"),
        ({"residual": True}, {}, "expected a class at least, and residual heads as wide as the model"),
        ({"activation": "relu"}, {}, "activation: got 'relu', expected one of 'gelu', 'silu'; train the heads again"),
    ],
)
def test_sets_that_cannot_be_used(
    changes: dict[str, Any], options: dict[str, Any], message: str, checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    model = checkpoint("qwen2")
    root = random_set(model, tmp_path / "heads")
    change_config(root, **changes)
    with pytest.raises(ExportError, match=message):
        build(str(model), tmp_path / "engine", clp(root, **options), "onnxruntime")
    assert not (tmp_path / "engine").exists()


def test_heads_of_another_backbone(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    root = random_set(checkpoint("qwen2"), tmp_path / "heads")
    with pytest.raises(
        ExportError, match=r"got heads for hidden_size 64, expected 60 as llama has; .* trained on qwen2"
    ):
        build(str(checkpoint("llama")), tmp_path / "engine", clp(root), "onnxruntime")
    with pytest.raises(
        ExportError, match=r"got heads trained on qwen2 \(\w{12}\), expected qwen3 \(\w{12}\): the weights"
    ):
        build(str(checkpoint("qwen3")), tmp_path / "engine", clp(root), "onnxruntime")


def test_sets_that_are_not_whole(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    model = checkpoint("qwen2")
    with pytest.raises(ExportError, match=r"clp: .*: got no clp_config.json, .* `enginewright tune clp` writes one"):
        build(str(model), tmp_path / "engine", clp(tmp_path), "onnxruntime")
    root = random_set(model, tmp_path / "heads")
    whole = (root / WEIGHTS).read_bytes()
    (root / WEIGHTS).write_bytes(whole[:-9])
    with pytest.raises(ExportError, match="not a whole safetensors file"):
        build(str(model), tmp_path / "engine", clp(root), "onnxruntime")
    (root / WEIGHTS).unlink()
    with pytest.raises(ExportError, match="the set of heads is incomplete"):
        build(str(model), tmp_path / "engine", clp(root), "onnxruntime")
    with pytest.raises(ExportError, match=r"clp: .*nowhere: got no clp_config.json, expected a set of heads"):
        build(str(model), tmp_path / "engine", clp(tmp_path / "nowhere"), "onnxruntime")
    (root / CONFIG).write_text('{"format": 1')
    with pytest.raises(ExportError, match=r"clp: .*clp_config.json: not valid JSON"):
        build(str(model), tmp_path / "engine", clp(root), "onnxruntime")
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("name", ["classifier.weight", "heads.1.up.bias", "heads.0.out.weight"])
@pytest.mark.parametrize(("storage", "value"), [("float32", np.nan), ("int8", np.inf)])
def test_heads_that_hold_no_numbers(
    name: str, storage: str, value: float, checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    model = checkpoint("qwen2")

    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[name].flat[7] = value

    root = random_set(model, tmp_path / "heads", edit=spoil)
    with pytest.raises(ExportError, match=rf"clp: .*: tensor '{name}' holds NaN or infinity; train the heads again"):
        build(str(model), tmp_path / "engine", clp(root, storage=storage), "onnxruntime")
    assert not (tmp_path / "engine").exists()


def test_the_method_is_applied_once(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    model = checkpoint("qwen2")
    applied = clp(random_set(model, tmp_path / "heads")).apply
    with pytest.raises(ExportError, match="got clp twice, expected it once; apply clp once"):
        build(str(model), tmp_path / "engine", Recipe(apply=applied * 2), "onnxruntime")


def run_decoder(root: Path, manifest: Manifest, path: Path, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs for the rows of ids [B, T], all of whose tokens are new and sampled."""
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(ort_library()))
    options.log_severity_level = 3
    folder = str(root / "graphs")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    layers = manifest.cache.layers
    heads = max(layer.kv_heads for layer in layers)
    count = len(layers)
    rows, length = ids.shape
    tiles = np.arange(rows * heads, dtype=np.int32).reshape(1, rows, heads, 1)
    feeds = {
        "input_ids": ids.reshape(-1),
        "position_ids": np.tile(np.arange(length), rows),
        "query_starts": np.arange(rows + 1, dtype=np.int32) * length,
        "sample_rows": np.arange(ids.size),
        "kv_lens": np.zeros((count, rows, heads), np.int32),
        "tile_table": np.broadcast_to(tiles, (count, *tiles.shape[1:])).copy(),
    } | {f"kv.{i}.tiles": np.zeros((rows * heads, layer.tile_bytes), np.int8) for i, layer in enumerate(layers)}
    names = ["logits", "greedy_tokens", "clp_tokens", "clp_counts"]
    return dict(zip(names, session.run(names, feeds), strict=True))


def head_arrays(root: Path, k: int, storage: str) -> dict[str, np.ndarray]:
    """The op's inputs from a set of heads."""
    found = load_file(root / WEIGHTS)

    def stacked(name: str) -> np.ndarray:
        return np.stack([found[f"heads.{j}.{name}"] for j in range(k - 1)])

    codes, scales = quantize_rows(stacked("out.weight"))
    out = {"out_weight": stacked("out.weight")} if storage == "float32" else {"out_codes": codes, "out_scales": scales}
    return {
        "classifier_weight": found["classifier.weight"],
        "classifier_bias": found["classifier.bias"],
        "up_weight": stacked("up.weight"),
        "up_bias": stacked("up.bias"),
        "out_bias": stacked("out.bias"),
        **out,
    }


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "made", "options"),
    [
        ("qwen2", {}, {}),  # a tied output projection
        ("llama", {"k": 4}, {"k": 3, "tau": 0.6, "verify": True}),  # fewer heads than there are
        ("gemma2", {"classes": 4}, {"storage": "int8"}),  # capped logits; a class beyond the heads
        ("mistral", {"activation": "silu", "residual": True}, {}),
    ],
)
def test_the_graph_emits_what_the_oracle_does(
    family: str, made: dict[str, Any], options: dict[str, Any], checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    model = checkpoint(family)
    heads = random_set(model, tmp_path / "heads", **made)
    root = tmp_path / "engine"
    manifest = build(str(model), root, clp(heads, **options), "onnxruntime")
    k, tau = options.get("k", made.get("k", 3)), options.get("tau", 0.3)
    assert manifest.decoding == {"kind": "multi_token", "k": k, "tau": tau, "verify": options.get("verify", False)}
    outputs = {spec.name: (spec.dtype, spec.shape) for spec in manifest.graphs["decoder"].outputs}
    rows = outputs["greedy_tokens"][1][0]
    assert outputs["clp_tokens"] == ("int64", (rows, k)) and outputs["clp_counts"] == ("int64", (rows,))
    assert manifest.graphs["decoder"].ops["ClpEmit"] == 1
    assert manifest.applied[0]["name"] == "clp"

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    ids = np.random.default_rng(3).integers(3, 250, (12, 5))
    with torch.no_grad():
        states = reference.model(input_ids=torch.from_numpy(ids)).last_hidden_state.flatten(0, 1).numpy()
    attributes = {"activation": int(made.get("activation") == "silu"), "residual": int(made.get("residual", False))}
    engine = manifest.graphs["decoder"].engines[0].files[0].path
    for path in (root / manifest.graphs["decoder"].files[0].path, root / engine):
        found = run_decoder(root, manifest, path, ids)
        arrays = head_arrays(heads, k, options.get("storage", "float32"))
        rows = {"sample_rows": np.arange(60), "query_starts": np.arange(0, 61, 5, np.int32)}
        given = {**arrays} if options.get("verify") else {**arrays, **rows}
        tokens, counts = clp_emit(states, found["greedy_tokens"], **given, k=k, tau=tau, **attributes)
        assert len(set(counts)) > 1
        np.testing.assert_array_equal(found["clp_counts"], counts)
        np.testing.assert_array_equal(found["clp_tokens"], tokens)


@pytest.mark.native
@pytest.mark.slow
def test_quantised_backbones_keep_their_heads(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    model = checkpoint("qwen2")
    heads = random_set(model, tmp_path / "heads")
    manifest = build(str(model), tmp_path / "engine", clp(heads, "int4"), "onnxruntime")
    found = run_decoder(
        tmp_path / "engine",
        manifest,
        tmp_path / "engine" / manifest.graphs["decoder"].files[0].path,
        np.arange(5, 25).reshape(4, 5),
    )
    assert set(found["clp_counts"]) <= {1, 2, 3}
    np.testing.assert_array_equal(found["clp_tokens"][:, 0], found["greedy_tokens"])
