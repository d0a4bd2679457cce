"""Folds nodes that read only weights into the weights' recipes, without computing a value.

Examples are the transpose of a projection, the split of a tensor of experts, and the `1 + weight` of a norm. Each becomes
part of a recipe (exporters/weights/weight.py) and runs once, when the engine is written.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from enginewright.exporters.weights.graph_weights import add_weight, weight_of
from enginewright.exporters.weights.weight import Weight

FOLDABLE = {"Transpose", "Split", "Squeeze", "Unsqueeze", "Reshape", "Slice", "Gather", "Add", "Mul", "Identity"}

_MOVED = "the graph moves its axes"
_COMPUTED = "the graph reads a part of it, or computes with it before it is used"


class FoldWeightsPass(ir.passes.InPlacePass):
    """Turn nodes whose inputs are weights and constants into weights, in graph order, until none is left.

    1. Such a node, if its type is in FOLDABLE and its output shapes are static, becomes one weight per output.
    2. A node that reads no weight is left to ordinary constant folding.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.op_type in FOLDABLE and _reads_weights_alone(node) and _is_static(node):
                _fold(model.graph, node)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _reads_weights_alone(node: ir.Node) -> bool:
    values = [value for value in node.inputs if value is not None]
    known = all(weight_of(v) is not None or v.const_value is not None for v in values)
    return known and any(weight_of(v) is not None for v in values)


def _is_static(node: ir.Node) -> bool:
    return all(v.shape is not None and v.dtype is not None and v.shape.is_static() for v in node.outputs)


def _fold(graph: ir.Graph, node: ir.Node) -> None:
    model = _single_node_model(node)
    inputs = _weights(node)
    for index, output in enumerate(node.outputs):

        def load(index: int = index) -> np.ndarray:
            feeds = {name: weight.load() for name, weight in inputs.items()}
            results: list[np.ndarray] = ReferenceEvaluator(model).run(None, feeds)  # type: ignore[assignment]
            return results[index]

        assert output.shape is not None and output.dtype is not None and output.name is not None
        base = next(iter(inputs))
        stored = inputs[base].given_up(_COMPUTED)
        weight = Weight(shape=tuple(output.shape.numpy()), dtype=output.dtype, load=load, stored=stored)
        if node.op_type == "Transpose":
            weight = _transposed(inputs[base], list(node.attributes.get_ints("perm", [])), weight)
        elif node.op_type == "Split" and _splits_parts(node, inputs[base]):
            weight = inputs[base].parts[index]
        elif node.op_type in ("Squeeze", "Reshape") and inputs[base].shape == (1, *weight.shape):
            weight = inputs[base].squeezed()
        suffix = node.op_type.lower() if len(node.outputs) == 1 else f"{node.op_type.lower()}.{index}"
        folded = add_weight(graph, f"{base}.{suffix}", weight)
        output.replace_all_uses_with(folded)
    graph.remove(node, safe=True)


def _transposed(source: Weight, perm: list[int], folded: Weight) -> Weight:
    """The weight of a transpose; better than `folded` where the axes allow: two axes cost no copy, and parts stay parts."""
    if perm == [1, 0]:
        return source.transposed()
    if not source.parts or perm[0] != 0:
        return folded
    if perm == [0, 2, 1]:
        return dataclasses.replace(folded, parts=tuple(part.transposed() for part in source.parts))
    shape = (1, *folded.shape[1:])
    parts = tuple(part.restored(_MOVED).derive(shape, partial(np.transpose, axes=perm)) for part in source.parts)
    return dataclasses.replace(folded, parts=parts)


def _splits_parts(node: ir.Node, source: Weight) -> bool:
    """Whether `node` cuts a tensor of experts into its experts."""
    return node.attributes.get_int("axis", 0) == 0 and 1 < len(source.parts) == len(node.outputs)


def _weights(node: ir.Node) -> dict[str, Weight]:
    """The weights that `node` reads, by value name."""
    found = {value.name: weight_of(value) for value in node.inputs if value is not None}
    return {name: weight for name, weight in found.items() if name is not None and weight is not None}


def _single_node_model(node: ir.Node) -> onnx.ModelProto:
    """A model of the node alone: weights are its inputs, constants its initializers."""
    values = [v for v in node.inputs if v is not None]
    proto = onnx.helper.make_graph(
        [ir.to_proto(node)],
        "fold",
        [ir.to_proto(v) for v in values if weight_of(v) is not None],
        [ir.to_proto(v) for v in node.outputs],
        initializer=[_named(v) for v in values if weight_of(v) is None],
    )
    return onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", 23)])


def _named(value: ir.Value) -> onnx.TensorProto:
    assert value.const_value is not None
    return onnx.numpy_helper.from_array(value.const_value.numpy(), value.name)
