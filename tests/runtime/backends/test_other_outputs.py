"""Tests of outputs that a graph has beyond the usual ones: every packed backend gives them by name, row by row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from enginewright.runtime import Sampling, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import TensorSpec
from enginewright.runtime.backends.session import NO_ARRAYS, Outputs, PackedStep
from tests.support.runtime.fake_backends import PACKED_BACKENDS, build_for_all, fake_devices

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def measured(make_engine: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine whose graph gives the two largest logits of each row, and the sum of all."""
    root = make_engine()
    manifest = directory.load(root)
    graph = manifest.graphs["decoder"]
    path = root / graph.files[0].path
    model = onnx.load(path)
    model.graph.initializer.append(helper.make_tensor("two", onnx.TensorProto.INT64, [1], [2]))
    model.graph.node.append(helper.make_node("TopK", ["logits", "two"], ["top", "places"]))
    model.graph.node.append(helper.make_node("ReduceSum", ["logits", "last_axis"], ["total"], keepdims=0))
    model.graph.initializer.append(helper.make_tensor("last_axis", onnx.TensorProto.INT64, [1], [1]))
    added = [
        TensorSpec(name="top", dtype="float32", shape=("N", 2)),
        TensorSpec(name="places", dtype="int64", shape=("N", 2)),
        TensorSpec(name="total", dtype="float32", shape=("N",)),
    ]
    types = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}
    model.graph.output.extend(helper.make_tensor_value_info(s.name, types[s.dtype], list(s.shape)) for s in added)
    onnx.save(model, path)
    files = (directory.describe_file(root, path),)
    graph = dataclasses.replace(graph, files=files, outputs=(*graph.outputs, *added))
    directory.save(dataclasses.replace(manifest, graphs={"decoder": graph}), root)
    return build_for_all(root, tmp_path_factory.mktemp("measured") / "built", chunk=16)


@pytest.mark.parametrize("backend", PACKED_BACKENDS)
def test_they_are_those_of_the_same_rows(backend: str, measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_devices(monkeypatch)
    rows = []
    with load(measured, 1, backend=backend, prefill_chunk=16) as llm:
        run = llm.loop.session.run

        def check(step: PackedStep) -> Outputs:
            outputs = run(dataclasses.replace(step, reads_logits=True))
            assert list(outputs.extra) == ["top", "places", "total"]
            assert outputs.extra["places"][:, 0].tolist() == outputs.greedy.tolist()
            np.testing.assert_array_equal(outputs.extra["top"], -np.sort(-outputs.logits, axis=1)[:, :2])
            np.testing.assert_allclose(outputs.extra["total"], outputs.logits.sum(axis=1), atol=1e-2)
            rows.append(len(outputs.greedy))
            return outputs

        monkeypatch.setattr(llm.loop.session, "run", check)
        llm.generate([[5, 6], [7, *range(30)], [8]], Sampling(max_tokens=9, ignore_eos=True))
    assert {1, 3} <= set(rows)


def test_slices_of_outputs() -> None:
    whole = Outputs(np.arange(6.0, dtype=np.float32).reshape(3, 2), np.arange(3), {"more": np.arange(9).reshape(3, 3)})
    assert whole[:2].greedy.tolist() == [0, 1] and whole[:2].extra["more"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert whole[np.array([2, 0])].extra["more"].tolist() == [[6, 7, 8], [0, 1, 2]]
    assert Outputs(whole.logits, whole.greedy)[:1].extra is NO_ARRAYS
