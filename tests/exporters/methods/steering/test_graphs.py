"""Steering in the graphs of every family: the same logits as PyTorch's model with the vectors added by hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from enginewright.exporters.capture.attention_hook import ATTENTION
from enginewright.exporters.capture.cache_formats import PagedCacheFormat
from enginewright.exporters.capture.capture import capture
from enginewright.exporters.methods.anchors import Anchors
from enginewright.exporters.methods.function_vectors.vectors import steered
from enginewright.exporters.methods.steering.method import NAME, Config, conditions, extend_graph
from enginewright.exporters.passes.lower_to_standard import LowerToStandardPass
from enginewright.exporters.passes.pipeline import attach_weights, rewrite
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.exporters.weights.graph_weights import to_initializers
from enginewright.runtime.artifact.decoder_graph import condition_ports, condition_tensor
from enginewright.runtime.errors import UnsupportedError
from tests.support.exporters.families import FAMILIES
from tests.support.exporters.fixtures import CheckpointMaker

CONTEXT = 64
PLACES = (Config(at="heads"), Config(at="stream"))


def steered_graph(model: Path) -> tuple[ir.Model, int, int]:
    """The graph with the entry's vectors added at both places of each layer, the number of layers, and the size of states."""
    opened = open_checkpoint(str(model))
    skeleton = build_skeleton(opened.config, attention=ATTENTION, max_context=CONTEXT)
    weights = bind_parameters(opened, skeleton.model)
    captured = capture(skeleton, PagedCacheFormat(32))
    attach_weights(captured, weights)
    rewrite(captured.model, ())
    declared = conditions(PLACES[0], opened)
    anchors = Anchors(captured.model.graph, opened.config.model_type, len(captured.layers), declared)
    for config in PLACES:
        extend_graph(config, anchors)
    anchors.finish()
    return captured.model, *declared[NAME].tensors["vectors"].shape


def run(model: ir.Model, path: Path, ids: list[int], **feeds: Any) -> np.ndarray:
    """The logits of a row of new tokens, from the graph as standard ops."""
    LowerToStandardPass(CONTEXT)(model)
    to_initializers(model.graph)
    ir.save(model, path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    positions = np.arange(len(ids))
    feeds |= {"input_ids": np.array([ids]), "position_ids": positions[None], "past_lens": np.zeros(1, np.int64)}
    feeds["sample_rows"] = positions
    for port in session.get_inputs():
        if port.name.startswith("kv."):
            feeds[port.name] = np.zeros([1 if isinstance(size, str) else size for size in port.shape], np.float32)
    return np.asarray(session.run(["logits"], feeds)[0])


@pytest.mark.slow
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_adds_vectors_where_pytorch_does(family: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    """From the fifth token on, with a factor; the tokens before it are those of the plain model."""
    path = checkpoint(family)
    model, layers, size = steered_graph(path)
    rng = np.random.default_rng(0)
    vectors = np.zeros((9, layers, size), np.float32)
    vectors[1], vectors[3] = rng.normal(0, 0.3, (2, layers, size))
    ids = rng.integers(3, 250, 9).tolist()
    index, scale = condition_ports(NAME)
    of_token, factors = np.array([[0, 0, 0, 0, 3, 3, 3, 3, 3]], np.int32), np.full((1, 9), 0.5, np.float32)
    given = {index: of_token, scale: factors, condition_tensor(NAME, "vectors"): vectors}
    got = run(model, tmp_path / "graph.onnx", ids, **given)
    reference = load_reference(str(path), ())
    by_layer = {layer: torch.from_numpy(vectors[3, layer]) for layer in range(layers)}
    with torch.no_grad():
        plain = reference(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
        with steered(reference, heads=by_layer, stream=by_layer, scale=0.5, first=4):
            expected = reference(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
    atol = 1e-5 * max(np.abs(expected).max(), 1)
    np.testing.assert_allclose(got, expected, atol=2 * atol)
    assert np.abs(expected[4:] - plain[4:]).max() > 100 * atol
    np.testing.assert_allclose(got[:4], plain[:4], atol=2 * atol)


def test_a_family_without_the_place_is_refused_by_name(
    checkpoint: CheckpointMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Anchors, layer: int) -> ir.Value:
        return self._current(None, "block output", layer)

    monkeypatch.setattr(Anchors, "block_output", gone)
    with pytest.raises(UnsupportedError, match=r"^llama: block output of layer 0: got a graph that does not show it"):
        steered_graph(checkpoint("llama"))
