"""Tests of the ONNX Runtime engine: its graph shares the exported weights and computes the same."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

from enginewright import builders
from enginewright.plugins.libraries.locate import LibraryError, ort_library
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.errors import BuildError
from enginewright.runtime.machine import compute_name

ENGINE = "engines/decoder.onnxruntime.onnx"


@pytest.fixture
def root(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported engine directory."""
    return Path(shutil.copytree(exported, tmp_path / "engine"))


def build(root: Path) -> Manifest:
    """Build for ONNX Runtime."""
    return builders.build(root, directory.load(root), "onnxruntime")


def run(path: Path, manifest: Manifest, tokens: list[int]) -> np.ndarray:
    """Logits of every token of one prompt, with the graph at `path` as it lies; weights are read from graphs/."""
    graphs = path.parents[1] / "graphs"
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(ort_library()))
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graphs))
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    layers, n = manifest.cache.layers, len(tokens)
    heads = layers[0].kv_heads
    feeds = {
        "input_ids": np.array(tokens),
        "position_ids": np.arange(n),
        "query_starts": np.array([0, n], np.int32),
        "sample_rows": np.arange(n),
        "kv_lens": np.zeros((len(layers), 1, heads), np.int32),
        "tile_table": np.arange(len(layers) * heads, dtype=np.int32).reshape(len(layers), 1, heads, 1) % heads,
        **{f"kv.{i}.tiles": np.zeros((heads, layer.tile_bytes), np.int8) for i, layer in enumerate(layers)},
    }
    logits: np.ndarray = session.run(["logits"], {i.name: feeds[i.name] for i in session.get_inputs()})[0]
    return logits


@pytest.mark.native
class TestBuild:
    def test_records_what_it_depends_on(self, root: Path) -> None:
        manifest = build(root)
        assert directory.load(root) == manifest
        (engine,) = manifest.graphs["decoder"].engines
        assert (engine.backend, engine.version, engine.compute) == ("onnxruntime", ort.__version__, compute_name())
        assert manifest.graphs["decoder"].ops == {"GreedySample": 1, "PagedAttention": 1}
        assert engine.plugins == {"GreedySample": 1, "PagedAttention": 1, "SplitQkv": 1}
        assert [file.path for file in engine.files] == [ENGINE]

    def test_weights_lie_on_disk_once(self, root: Path, exported: Path) -> None:
        build(root)
        new = sorted(set(root.rglob("*")) - {root / p.relative_to(exported) for p in exported.rglob("*")})
        assert [p.relative_to(root).as_posix() for p in new] == ["engines", ENGINE]
        graph = ir.load(root / ENGINE).graph
        data = root / "graphs/decoder.onnx.data"
        large = [
            v.const_value
            for v in graph.initializers.values()
            if v.const_value is not None and v.const_value.nbytes > 2048
        ]
        assert large and all(isinstance(tensor, ir.ExternalTensor) for tensor in large)
        assert {tensor.location for tensor in large} == {data.name}
        assert data.read_bytes() == (exported / "graphs/decoder.onnx.data").read_bytes()

    def test_computes_what_the_exported_graph_does(self, root: Path) -> None:
        manifest = build(root)
        tokens = (np.arange(33) * 7 % 250).tolist()
        plain = run(root / "graphs/decoder.onnx", manifest, tokens)
        built = run(root / ENGINE, manifest, tokens)
        assert plain.shape == (33, 250) and np.ptp(plain) > 0.1
        assert np.abs(plain - built).max() < 1e-5  # fused kernels sum in another order

    def test_an_engine_can_be_moved(self, root: Path, tmp_path: Path) -> None:
        build(root)
        moved = root.rename(tmp_path / "elsewhere")
        assert np.isfinite(run(moved / ENGINE, directory.load(moved), [3, 4])).all()

    def test_building_again_replaces(self, root: Path) -> None:
        first = build(root)
        stale = dataclasses.replace(first.graphs["decoder"].engines[0], version="0.1")
        other = dataclasses.replace(stale, backend="other")
        graph = dataclasses.replace(first.graphs["decoder"], engines=(stale, other))
        directory.save(dataclasses.replace(first, graphs={"decoder": graph}), root)
        again = build(root)
        assert {e.backend: e.version for e in again.graphs["decoder"].engines} == {
            "other": "0.1",
            "onnxruntime": ort.__version__,
        }

    def test_norms_are_fused_with_the_sums_before_them(self, root: Path) -> None:
        build(root)
        types = [node.op_type for node in ir.load(root / ENGINE).graph]
        assert "SkipSimplifiedLayerNormalization" in types and "RMSNormalization" not in types


def test_without_the_library_the_error_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise LibraryError("libenginewright_ort.so: not found; install a C++ compiler")

    monkeypatch.setattr("enginewright.builders.onnxruntime.cpu.ort_library", missing)
    with pytest.raises(BuildError, match="install a C"):
        build(root)
    assert directory.load(root).graphs["decoder"].engines == ()


@pytest.mark.native
def test_a_graph_that_onnxruntime_refuses(root: Path) -> None:
    manifest = directory.load(root)
    path = root / "graphs/decoder.onnx"
    model = ir.load(path)
    node = next(node for node in model.graph if node.op_type == "PagedAttention")
    node.op_type = "NoSuchOp"
    ir.save(model, path)
    with pytest.raises(BuildError, match=r"onnxruntime .* does not take the graph \(.*NoSuchOp"):
        builders.build(root, manifest, "onnxruntime")
    assert not (root / ENGINE).exists()


def test_unknown_backends_list_the_known(root: Path) -> None:
    with pytest.raises(BuildError, match=r"unknown backend 'tensorflow'; known: onnxruntime"):
        builders.build(root, directory.load(root), "tensorflow")


@pytest.mark.native
def test_a_full_disk_is_called_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime says "Protobuf serialization failed" where it could not write what it has optimised."""

    def fail(*_: object, **__: object) -> None:
        raise state.InvalidProtobuf("Protobuf serialization failed.")

    def fill(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ort, "InferenceSession", fail)
    with pytest.raises(BuildError, match="does not take the graph"):
        build(root)
    monkeypatch.setattr(os, "posix_fallocate", fill)
    with pytest.raises(OSError, match="No space left on device"):
        build(root)
