"""Tests of finding layers of experts: what is one, and what a graph may not have at any place of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from transformers import AutoConfig

from enginewright.exporters.capture.attention_hook import ATTENTION
from enginewright.exporters.capture.cache_formats import PagedCacheFormat
from enginewright.exporters.capture.capture import capture
from enginewright.exporters.passes.find_mixtures import find_mixtures
from enginewright.exporters.passes.pipeline import attach_weights, rewrite
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.exporters.weights.graph_weights import weight_of
from enginewright.exporters.weights.stored_form import Gate
from enginewright.exporters.weights.weight import Weight
from tests.support.exporters.families import FAMILIES, SIZES

pytestmark = pytest.mark.slow


@functools.cache
def graph_of(family: str, **changes: Any) -> ir.Graph:
    """The graph of one layer of the family, without values."""
    changed = {name: list(value) if isinstance(value, tuple) else value for name, value in changes.items()}
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], "num_hidden_layers": 1, **changed})
    skeleton = build_skeleton(config, attention=ATTENTION, max_context=64)
    captured = capture(skeleton, PagedCacheFormat(16))
    weights = {name: _unread(tuple(value.shape)) for name, value in skeleton.model.named_parameters()}
    attach_weights(captured, weights)
    rewrite(captured.model)
    return captured.model.graph


def _unread(shape: tuple[int, ...]) -> Weight:
    def load() -> np.ndarray:
        raise AssertionError("a graph is rewritten without values")

    return Weight(shape=shape, dtype=ir.DataType.FLOAT, load=load)


UNEVEN = {"num_experts_per_tok": 3, "num_local_experts": 5}
SILU = Gate(activation="silu")
CLAMPED = Gate(activation="clamped_swiglu", alternate=True, slope=pytest.approx(1.702), limit=7.0)  # type: ignore[arg-type]


def _name(part: object) -> str:
    """For pytest: functions without their addresses, so that all processes agree."""
    return part.__name__.strip("<>") if callable(part) else str(part)


@pytest.mark.parametrize(
    ("family", "changes", "gate", "biased"),
    [
        ("mixtral", UNEVEN, SILU, False),
        ("mixtral", {"num_experts_per_tok": 1}, SILU, False),
        ("mixtral", {"hidden_act": "gelu_pytorch_tanh"}, Gate(activation="gelu_tanh"), False),
        ("gpt_oss", {"layer_types": ("full_attention",)}, CLAMPED, True),
    ],
)
def test_a_layer_of_experts_is_found(family: str, changes: dict[str, Any], gate: Gate, biased: bool) -> None:
    (found,) = find_mixtures(graph_of(family, **changes))
    experts = changes.get("num_local_experts", 4)
    assert len(found.up) == len(found.down) == experts and found.chosen == changes.get("num_experts_per_tok", 2)
    assert found.gate == gate
    for nodes, shape in ((found.up, (64, 192)), (found.down, (96, 64))):
        weights = [weight_of(node.inputs[1]) for node in nodes]
        assert [None if weight is None else weight.shape for weight in weights] == [shape] * experts
        assert len({id(node.inputs[1]) for node in nodes}) == experts
    assert [None if value is None else tuple(value.shape or ()) for value in (found.up_bias, found.down_bias)] == (
        [(experts, 192), (experts, 64)] if biased else [None, None]
    )


def test_an_activation_without_a_kernel_is_left_alone() -> None:
    assert not list(find_mixtures(graph_of("mixtral", hidden_act="relu")))


def _of(graph: ir.Graph, kind: str, number: int = 0) -> ir.Node:
    return [node for node in graph if node.op_type == kind][number]


def _sorting(graph: ir.Graph) -> ir.Node:
    return next(node for node in graph if node.op_type == "TopK" and node.attributes.get_int("largest", 1) == 0)


def _after_sum(graph: ir.Graph) -> ir.Node:
    return next(iter(find_mixtures(graph))).result.producer()  # type: ignore[return-value]


CHANGED_ATTRIBUTES: list[tuple[Callable[[ir.Graph], ir.Node], str, int]] = [
    (_sorting, "largest", 1),
    (_after_sum, "keepdims", 1),
    (lambda graph: _of(graph, "CumSum"), "exclusive", 1),
    (lambda graph: _of(graph, "CumSum"), "reverse", 1),
    (lambda graph: _of(graph, "Concat", -1), "axis", 1),
    (lambda graph: next(iter(find_mixtures(graph))).up[1].inputs[0].producer(), "axis", 1),  # type: ignore
]


@pytest.mark.parametrize(("choose", "name", "value"), CHANGED_ATTRIBUTES, ids=_name)
def test_another_attribute_at_any_place_is_another_layer(
    choose: Callable[[ir.Graph], ir.Node], name: str, value: int
) -> None:
    graph = graph_of("mixtral", **UNEVEN)
    node = choose(graph)
    before = node.attributes.get(name)
    node.attributes[name] = ir.AttrInt64(name, value)
    try:
        assert not list(find_mixtures(graph))
    finally:
        if before is None:
            del node.attributes[name]
        else:
            node.attributes[name] = before
    assert len(list(find_mixtures(graph))) == 1


@contextmanager
def _replaced(node: ir.Node, index: int, value: ir.Value | None) -> Iterator[None]:
    before = node.inputs[index]
    node.replace_input_with(index, value)
    try:
        yield
    finally:
        node.replace_input_with(index, before)


CHANGED_INPUTS: list[tuple[str, int, Callable[[ir.Graph], ir.Value | None]]] = [
    ("Div", 1, lambda graph: _of(graph, "Range").inputs[2]),  # divides by 1
    ("Less", 1, lambda graph: _of(graph, "Range").inputs[2]),
    ("Sub", 0, lambda graph: _sorting(graph).outputs[1]),
    ("Range", 1, lambda graph: _of(graph, "Range", 1).inputs[1]),  # the first expert's end
    ("Range", 0, lambda graph: _of(graph, "Range").inputs[2]),  # begins with 1
    ("ScatterND", 2, lambda graph: _sorting(graph).outputs[1]),
    ("CumSum", 0, lambda graph: _sorting(graph).outputs[0]),
    ("Sigmoid", 0, lambda graph: _of(graph, "Split", -1).outputs[1]),
]


@pytest.mark.parametrize(("kind", "index", "other"), CHANGED_INPUTS, ids=_name)
def test_another_input_at_any_place_is_another_layer(
    kind: str, index: int, other: Callable[[ir.Graph], ir.Value | None]
) -> None:
    graph = graph_of("mixtral", **UNEVEN)
    node = _of(graph, kind, -1 if kind == "Div" else 0)
    with _replaced(node, index, other(graph)):
        assert not list(find_mixtures(graph))
    assert len(list(find_mixtures(graph))) == 1
