"""Tests of weight recipes: composed without values, computed when the engine is written."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from enginewright.exporters.capture.attention_hook import ATTENTION
from enginewright.exporters.capture.cache_formats import PagedCacheFormat
from enginewright.exporters.capture.capture import Captured, capture
from enginewright.exporters.passes.pipeline import attach_weights, rewrite
from enginewright.exporters.passes.quantize_weights import QuantizeWeightsPass
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.exporters.weights.graph_weights import add_weight, to_initializers, weight_of
from enginewright.exporters.weights.registry import choose_storage
from enginewright.exporters.weights.weight import StoredType, Weight, concatenate
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.families import make_model
from tests.support.exporters.small_graphs import Arrays, make_graph, make_weight, quantized, random_arrays

W: Arrays = random_arrays(a=(3, 4), b=(2, 4), c=(3, 1))


def test_derived_weights() -> None:
    weight = make_weight(W["a"])
    assert weight.size == 12
    np.testing.assert_array_equal(weight.transposed().load(), W["a"].T)
    assert weight.transposed().shape == (4, 3)
    half = weight.derive((12,), lambda x: x.reshape(-1).astype(np.float16), ir.DataType.FLOAT16)
    assert half.dtype is ir.DataType.FLOAT16 and half.load().dtype == np.float16


def test_a_weight_in_the_place_of_another_keeps_the_record_of_its_codes() -> None:
    """Of the matrix itself or of each expert; a record that a weight has already counts, and nothing is made without one."""
    old = dataclasses.replace(make_weight(W["a"]), stored=StoredType(name="Q"))
    new = make_weight(W["a"] + 1)
    told = StoredType(name="Q", restored="m changes weights")
    assert new.in_place_of(old, "m changes weights").stored == told
    assert new.in_place_of(old, "m changes weights").in_place_of(old, "n changes weights").stored == told
    assert new.in_place_of(make_weight(W["a"]), "m changes weights") is new
    stack, adapted = dataclasses.replace(old, stored=None, parts=(old, old)), dataclasses.replace(new, parts=(old, new))
    found = adapted.in_place_of(stack, "m changes weights")
    assert found.stored is None and found.parts[0] is old and found.parts[1].stored == told
    whole = new.in_place_of(stack, "m changes weights").stored
    assert whole == dataclasses.replace(told, matrices=2)
    assert old.restored("it is asked for").derive((12,), np.ravel).stored == StoredType(
        name="Q", restored="it is asked for"
    )


@pytest.mark.parametrize(("names", "axis"), [("ab", 0), ("ac", 1), ("a", 0), ("aaa", 1)])
def test_concatenation(names: str, axis: int) -> None:
    got = concatenate([make_weight(W[name]) for name in names], axis)
    expected = np.concatenate([W[name] for name in names], axis)
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got.load(), expected)


def test_composing_loads_nothing() -> None:
    closed = make_weight(W["a"], closed=True)
    concatenate([closed.transposed(), closed.derive((4, 3), lambda x: x.T)], 0)


def test_initializers_load_when_they_are_read_and_unused_weights_go() -> None:
    model = make_graph("g (float[T, 3] x) => (float[T, 4] y) { y = Identity (x) }")
    graph, loads = model.graph, []

    def load() -> np.ndarray:
        loads.append(1)
        return W["a"].T.T  # not contiguous is as good

    used = add_weight(graph, "used", Weight(shape=(3, 4), dtype=ir.DataType.FLOAT, load=load))
    add_weight(graph, "unused", make_weight(W["b"], closed=True))
    graph.append(ir.node("MatMul", [graph.inputs[0], used]))
    to_initializers(graph)
    assert [value.name for value in graph.inputs] == ["x"] and list(graph.initializers) == ["used"]
    assert weight_of(used) is None and not loads
    assert used.const_value is not None
    np.testing.assert_array_equal(used.const_value.numpy(), W["a"])
    assert loads == [1]


def test_a_recipe_that_breaks_its_word_is_caught() -> None:
    model = make_graph("g (float[T, 3] x) => (float[T, 4] y) { y = Identity (x) }")
    wrong = add_weight(model.graph, "w", Weight(shape=(3, 4), dtype=ir.DataType.FLOAT, load=lambda: W["b"]))
    model.graph.append(ir.node("MatMul", [model.graph.inputs[0], wrong]))
    to_initializers(model.graph)
    with pytest.raises(AssertionError, match=r"w: got \(2, 4\), expected \(3, 4\)"):
        wrong.const_value.numpy()  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_rewriting_loads_no_weight(family: str) -> None:
    config = make_model(family, num_hidden_layers=1).config
    captured = capture(build_skeleton(config, attention=ATTENTION, max_context=64), PagedCacheFormat(16))
    parameters = captured.skeleton.model.named_parameters(remove_duplicate=False)
    attach_weights(captured, {name: make_weight(np.empty(tuple(p.shape)), closed=True) for name, p in parameters})
    rewrite(captured.model)
    QuantizeWeightsPass(choose_storage("int4"))(captured.model)
    to_initializers(captured.model.graph)
    assert any(node.op_type == "MatMulNBits" for node in captured.model.graph)
    left = [node for node in captured.model.graph if node.op_type in ("MatMul", "Gemm")]
    assert len(left) == (1 if family == "mixtral" else 0), "the router, and nothing else, stays float32"


def test_a_graph_that_reads_what_nobody_has() -> None:
    model = make_graph("g (float[T, 1] x) => (float[T, 1] y) <float[1] mask = {1}> { y = Add (x, mask) }")
    skeleton = build_skeleton(make_model("llama").config, attention="eager", max_context=64)
    with pytest.raises(
        UnsupportedError, match="llama: the graph reads a constant 'mask' that is no parameter or buffer"
    ):
        attach_weights(Captured(model=model, skeleton=skeleton, layers=()), {})


def test_a_quantised_weight_restores_its_codes() -> None:
    weight = quantized(3, 6)
    assert weight.quantized is not None
    codes, scales = weight.quantized.load()
    np.testing.assert_array_equal(weight.load(), codes * np.repeat(scales, 2, axis=1))
    turned = weight.transposed()
    assert turned.shape == (6, 3) and turned.form == (4, 2, 0, "", "") and turned.transposed().form == weight.form
    np.testing.assert_array_equal(turned.load(), weight.load().T)


@pytest.mark.parametrize("offset", ["zero_points", "minima"])
def test_an_offset_is_part_of_the_values(offset: str) -> None:
    weight = quantized(3, 6, offset=offset)
    assert weight.quantized is not None and weight.quantized.offset == offset
    codes, scales = weight.quantized.load()
    zeros = weight.quantized.zero_points() if weight.quantized.zero_points is not None else np.zeros_like(scales)
    minima = weight.quantized.minima() if weight.quantized.minima is not None else np.zeros_like(scales)
    steps, zeros, minima = (np.repeat(x, 2, axis=1) for x in (scales, zeros, minima))
    from_zero = codes + (8 if offset == "minima" else 0)
    np.testing.assert_array_equal(weight.load(), (from_zero - zeros.astype(np.float32)) * steps + minima)


@pytest.mark.parametrize("offset", ["", "zero_points", "minima"])
def test_quantised_weights_are_joined_along_their_outputs(offset: str) -> None:
    parts = [quantized(3, 6, offset=offset), quantized(2, 6, seed=1, offset=offset)]
    whole = concatenate([part.transposed() for part in parts], axis=1)
    assert whole.shape == (6, 5) and whole.form == (4, 2, 0, offset, "")
    np.testing.assert_array_equal(whole.load(), np.concatenate([part.load() for part in parts]).T)


@pytest.mark.parametrize(
    "other",
    [
        quantized(3, 6, bits=3),
        quantized(3, 6, group_size=3),
        quantized(3, 6, offset="minima"),
        make_weight(W["a"]),
    ],
)
def test_weights_quantised_in_different_ways_are_not_joined(other: Weight) -> None:
    with pytest.raises(ExportError, match="different ways"):
        concatenate([quantized(3, 6), other], axis=0)
    with pytest.raises(ExportError, match="different ways"):
        concatenate([quantized(3, 6), quantized(3, 6)], axis=1)


def test_a_quantised_weight_is_not_changed() -> None:
    with pytest.raises(ExportError, match="quantise after that"):
        quantized(3, 6).derive((3, 6), lambda x: x + 1)
