"""Anchors: their values are those that transformers computes at the same places, in every family; nodes added there act."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from enginewright.builders.layer_check.residual_stream import find_residual_stream
from enginewright.exporters.capture.attention_hook import ATTENTION
from enginewright.exporters.capture.cache_formats import PagedCacheFormat
from enginewright.exporters.capture.capture import capture
from enginewright.exporters.methods.anchors import Anchors
from enginewright.exporters.methods.kvarn import Config as KVarN
from enginewright.exporters.methods.kvarn.method import KVarNCacheFormat, passes
from enginewright.exporters.passes.lower_to_standard import LowerToStandardPass
from enginewright.exporters.passes.narrow_activations import NarrowActivationsPass
from enginewright.exporters.passes.pipeline import attach_weights, rewrite
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.exporters.weights.graph_weights import to_initializers
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.artifact.manifest import Condition, ConditionTensor
from enginewright.runtime.errors import ExtensionError, UnsupportedError
from tests.support.exporters.families import FAMILIES
from tests.support.exporters.fixtures import CheckpointMaker

pytestmark = pytest.mark.slow

Floats = NDArray[np.float32]
TOKENS, CONTEXT = 9, 64
MORE = {  # of other structures: parallel attention and feed-forward parts, norms after the parts alone, scaled sums
    "gpt_neox": {"num_key_value_heads": 4, "rotary_pct": 0.5},
    "olmo2": {},
    "granite": {"residual_multiplier": 0.5, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "cohere": {},
}


def anchors_of(model: Path, cache: Any = None, **conditions: Condition) -> tuple[ir.Model, Anchors]:
    """The graph of a checkpoint as methods see it."""
    opened = open_checkpoint(str(model))
    skeleton = build_skeleton(opened.config, attention=ATTENTION, max_context=CONTEXT)
    weights = bind_parameters(opened, skeleton.model)
    captured = capture(skeleton, cache or PagedCacheFormat(32))
    attach_weights(captured, weights)
    rewrite(captured.model, passes(KVarN()) if cache else ())
    family = opened.config.model_type
    return captured.model, Anchors(captured.model.graph, family, len(captured.layers), conditions)


def run_dense(model: ir.Model, path: Path, ids: list[int], **more: Any) -> dict[str, Floats]:
    """The outputs of the graph, as standard ops, for one row of new tokens."""
    LowerToStandardPass(CONTEXT)(model)
    to_initializers(model.graph)
    ir.save(model, path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {
        "input_ids": np.array([ids]),
        "position_ids": np.arange(len(ids))[None],
        "past_lens": np.zeros(1, np.int64),
        "sample_rows": np.arange(len(ids)),
        **more,
    }
    for port in session.get_inputs():
        if port.name.startswith("kv."):
            dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[port.type]
            feeds[port.name] = np.zeros([1 if isinstance(size, str) else size for size in port.shape], dtype)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def reference_values(reference: PreTrainedModel, ids: list[int]) -> dict[str, Floats]:
    """What transformers' modules compute at the anchors, by forward hooks."""
    found: dict[str, Floats] = {}

    def keep(name: str, *, read: bool = False) -> Callable[..., None]:
        def hook(_: torch.nn.Module, inputs: Any, output: Any) -> None:
            value = inputs[0] if read else output[0] if isinstance(output, tuple) else output
            found[name] = value.detach().reshape(len(ids), -1).float().numpy()

        return hook

    def keep_states(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, inputs: Any, named: Any) -> None:
            value = inputs[0] if inputs else named["hidden_states"]
            found[name] = value.detach().reshape(len(ids), -1).float().numpy()

        return hook

    base = reference.base_model
    layers = next(each for name, each in base.named_children() if isinstance(each, torch.nn.ModuleList))
    for index, layer in enumerate(layers):
        attention = next(each for name, each in layer.named_children() if name in ("self_attn", "attention"))
        projection = next(each for n, each in attention.named_children() if n in ("o_proj", "dense"))
        attention.register_forward_pre_hook(keep_states(f"attention_input.{index}"), with_kwargs=True)
        projection.register_forward_hook(keep(f"attention_output.{index}", read=True))
        projection.register_forward_hook(keep(f"o_proj_output.{index}"))
        layer.register_forward_hook(keep(f"block_output.{index}"))
    norm = next(each for n, each in base.named_children() if n in ("norm", "final_layer_norm"))
    norm.register_forward_hook(keep("final_norm"))
    with torch.no_grad():
        reference(input_ids=torch.tensor([ids]))
    return found


def asked(anchors: Anchors) -> Iterator[tuple[str, ir.Value]]:
    """Every anchor by its name in `reference_values`."""
    for layer in range(anchors.layers):
        for name in ("attention_input", "attention_output", "o_proj_output", "block_output"):
            yield f"{name}.{layer}", getattr(anchors, name)(layer)
    yield "final_norm", anchors.final_norm()


def make_checkpoint(family: str, checkpoint: CheckpointMaker, monkeypatch: pytest.MonkeyPatch) -> Path:
    if family in MORE:
        monkeypatch.setitem(FAMILIES, family, MORE[family])
    return checkpoint(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_anchors_are_the_models_values(
    family: str, checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_checkpoint(family, checkpoint, monkeypatch)
    model, anchors = anchors_of(path)
    if family not in MORE:  # the layer check finds the stream of graphs without attention nodes in a way of its own
        stream = find_residual_stream(model.graph, anchors.layers)
        assert stream[1:] == [anchors.block_output(layer) for layer in range(anchors.layers)]
    for name, value in list(asked(anchors)):
        copy = anchors.after(value)("Identity", value)
        anchors.add_output(name, copy, ir.DataType.FLOAT, tuple(copy.shape or ()))
    anchors.finish()
    ids = np.random.default_rng(0).integers(3, 250, TOKENS).tolist()
    got = run_dense(model, tmp_path / "graph.onnx", ids)
    expected = reference_values(load_reference(str(path), ()), ids)
    assert len(expected) == 9
    for name, value in expected.items():
        np.testing.assert_allclose(got[name].reshape(value.shape), value, atol=2e-5, err_msg=name)


def steer(anchors: Anchors) -> None:
    """Add each token's entry of the condition, times its scale, to what the attention of every layer gives."""
    mood = anchors.condition("mood")
    assert mood.scale is not None
    scale, index, vectors = mood.scale, mood.index, mood.tensors["vectors"]
    for layer in range(anchors.layers):

        def add(write: Any, value: ir.Value, layer: int = layer) -> ir.Value:
            row = write("Gather", vectors, write.constant(layer), axis=1)
            entry = write("Gather", row, index)
            return write("Add", value, write("Mul", entry, write("Unsqueeze", scale, write.constant([1]))))

        anchors.add_after(anchors.o_proj_output(layer), add)


MOOD = Condition(capacity=2, scaled=True, tensors={"vectors": ConditionTensor(dtype="float32", shape=(2, 64))})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_condition_at_an_anchor_acts_on_its_tokens(dtype: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    """Against transformers with a hook on o_proj: other entries and scales for each token, entry 0 for some."""
    path = checkpoint("qwen2")
    model, anchors = anchors_of(path, mood=MOOD)
    steer(anchors)
    anchors.finish()
    inputs = {value.name: (value.dtype, [str(size) for size in value.shape or ()]) for value in model.graph.inputs}
    assert inputs["cond.mood.index"] == (ir.DataType.INT32, ["T"])
    assert inputs["cond.mood.scale"] == (ir.DataType.FLOAT, ["T"])
    assert inputs["cond.mood.vectors"] == (ir.DataType.FLOAT, ["3", "2", "64"])
    NarrowActivationsPass(dtype)(model)
    rng = np.random.default_rng(1)
    ids = rng.integers(3, 250, TOKENS).tolist()
    vectors = rng.standard_normal((3, 2, 64)).astype(np.float32)
    vectors[0] = 0
    index = rng.integers(0, 3, (1, TOKENS)).astype(np.int32)
    scale = rng.standard_normal((1, TOKENS)).astype(np.float32)
    assert 0 in index
    fed = {"cond.mood.index": index, "cond.mood.scale": scale, "cond.mood.vectors": vectors}
    got = run_dense(model, tmp_path / "graph.onnx", ids, **fed)["logits"]
    reference = load_reference(str(path), ())
    added = torch.from_numpy(vectors[index[0]] * scale[0][:, None, None])
    for layer, block in enumerate(reference.model.layers):
        block.self_attn.o_proj.register_forward_hook(lambda _, __, output, layer=layer: output + added[:, layer])
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor([ids])).logits[0].numpy()
    plain = load_reference(str(path), ())(input_ids=torch.tensor([ids])).logits[0].detach().numpy()
    assert np.abs(expected - plain).max() > 0.05
    np.testing.assert_allclose(got, expected, atol=1e-5 if dtype == "float32" else 5e-3)


def test_a_method_sees_what_the_ones_before_it_added(checkpoint: CheckpointMaker) -> None:
    _, anchors = anchors_of(checkpoint("qwen2"))
    value = anchors.o_proj_output(0)
    block = anchors.block_output(0)
    shift = anchors.add_weight(
        "mine.shift", Weight(shape=(64,), dtype=ir.DataType.FLOAT, load=lambda: np.ones(64, "f4"))
    )
    first = anchors.add_after(value, lambda write, x: write("Add", x, shift))
    assert anchors.o_proj_output(0) is first and anchors.block_output(0) is block
    second = anchors.add_after(anchors.o_proj_output(0), lambda write, x: write("Mul", x, shift))
    assert anchors.o_proj_output(0) is second
    assert [node.op_type for node, _ in value.uses()] == ["Add"] and [node.op_type for node, _ in first.uses()] == [
        "Mul"
    ]
    assert second.dtype is ir.DataType.FLOAT and str(second.shape) == "[1,T,64]"


def test_an_output_of_the_graph_can_be_changed(checkpoint: CheckpointMaker) -> None:
    model, anchors = anchors_of(checkpoint("qwen2"))
    new = anchors.add_after(anchors.logits(), lambda write, x: write("Neg", x))
    assert anchors.logits() is new and [value.name for value in model.graph.outputs][:2] == ["logits", "greedy_tokens"]
    assert anchors.greedy_tokens().producer().inputs[0] is new  # type: ignore[union-attr]


def test_nodes_that_read_later_values_are_put_in_order(checkpoint: CheckpointMaker) -> None:
    """A hook that writes nodes in any order; every node has to come after those that it reads."""
    model, anchors = anchors_of(checkpoint("qwen2"))
    early, late = anchors.o_proj_output(0), anchors.final_norm()
    mixed = anchors.after(early)("Add", early, late)
    anchors.add_output("mixed", mixed, ir.DataType.FLOAT, ("T", 64))
    anchors.finish()
    nodes = list(model.graph)
    assert nodes.index(mixed.producer()) > nodes.index(late.producer())  # type: ignore[arg-type]


def test_a_rotated_attention_output_is_refused(checkpoint: CheckpointMaker) -> None:
    _, anchors = anchors_of(checkpoint("qwen2"), KVarNCacheFormat(KVarN()))
    with pytest.raises(
        UnsupportedError, match="qwen2: attention output of layer 1: got it rotated as KVarN stores values"
    ):
        anchors.attention_output(1)
    assert anchors.o_proj_output(1) is not None


def test_what_a_graph_does_not_show_is_named(checkpoint: CheckpointMaker) -> None:
    """Only when it is asked for, with the family and the anchor."""
    model, anchors = anchors_of(checkpoint("qwen2"))
    product = next(node for node in model.graph if node.op_type == "MatMul" and "o_proj" in str(node.inputs[1].name))  # type: ignore[union-attr]
    product.inputs[1].meta.clear()  # type: ignore[union-attr]
    with pytest.raises(
        UnsupportedError, match="qwen2: output of the attention's projection of layer 0: got a graph that"
    ):
        anchors.o_proj_output(0)
    assert anchors.o_proj_output(1) is not None and anchors.final_norm() is not None
    with pytest.raises(UnsupportedError, match="qwen2: got no attention of layer 2, expected layers 0 to 1"):
        anchors.block_output(2)


def test_conditions_that_nobody_declared_or_reads(checkpoint: CheckpointMaker) -> None:
    _, anchors = anchors_of(checkpoint("qwen2"), mood=MOOD)
    with pytest.raises(ExtensionError, match=r"condition 'tone': got no declaration of it, expected .* declared: mood"):
        anchors.condition("tone")
    with pytest.raises(ExtensionError, match="condition 'mood': got no node that reads it"):
        anchors.finish()
    anchors.condition("mood")
    with pytest.raises(ExtensionError, match="condition 'mood': got no node that reads it"):
        anchors.finish()


def test_the_tables_of_packed_rows_are_not_lowered(checkpoint: CheckpointMaker) -> None:
    model, anchors = anchors_of(checkpoint("qwen2"))
    anchors.add_output(
        "starts", anchors.after(anchors.logits())("Neg", anchors.input("query_starts")), ir.DataType.INT32, ("B1",)
    )
    with pytest.raises(UnsupportedError, match="plugins none: got query_starts as an input of Neg"):
        LowerToStandardPass(CONTEXT)(model)


@pytest.mark.slow
def test_anchors_where_layers_read_values_of_earlier_ones(checkpoint: CheckpointMaker) -> None:
    """With Depth-Attention there are paths around whole blocks, through the values that later layers mix."""
    path = checkpoint("qwen3", num_hidden_layers=3, depth_attention={"stride": 1, "recent": 2})
    model, anchors = anchors_of(path)
    assert any(node.op_type == "DepthMix" for node in model.graph)
    stream = find_residual_stream(model.graph, 3)
    assert stream[1:] == [anchors.block_output(layer) for layer in range(3)]
