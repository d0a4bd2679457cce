"""Runs all projections of one input as one matrix product: query, key and value; gate and up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from enginewright.exporters.weights.graph_weights import add_weight, find_bias, weight_of
from enginewright.exporters.weights.weight import Weight, WeightForm, concatenate


@dataclass(frozen=True)
class _Projection:
    """A MatMul with a weight and the Add of a bias after it, if there is one; `_projection` creates it.

    product: the MatMul.
    weight: [in, out].
    bias: [out], or None.
    output: of the Add, or of the MatMul without a bias.
    """

    product: ir.Node
    weight: Weight
    bias: Weight | None
    output: ir.Value


class PackProjectionsPass(ir.passes.InPlacePass):
    """Concatenate the weights of MatMuls that read one value, and split the product.

    1. At least two MatMuls of one input by weights [in, out]: one MatMul, one Split.
    2. All of them with a bias: the biases are concatenated too, one Add.
    3. Some with a bias and some without, or quantised in different ways: only those of the same kind are packed together.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        groups: dict[tuple[int, bool, WeightForm | None], list[_Projection]] = {}
        for node in model.graph:
            projection = _projection(node)
            if projection is not None:
                kind = (id(node.inputs[0]), projection.bias is not None, projection.weight.form)
                groups.setdefault(kind, []).append(projection)
        siblings = [group for group in groups.values() if len(group) > 1]
        for group in siblings:
            _pack(model.graph, group)
        return ir.passes.PassResult(model, modified=bool(siblings))


def _projection(node: ir.Node) -> _Projection | None:
    if node.op_type != "MatMul" or node.domain != "":
        return None
    weight = weight_of(node.inputs[1])
    if weight is None or len(weight.shape) != 2 or weight_of(node.inputs[0]) is not None:
        return None
    found = find_bias(node, weight.shape[1])
    if found is None:
        return _Projection(node, weight, None, node.outputs[0])
    add, bias = found
    return _Projection(node, weight, weight_of(bias), add.outputs[0])


def _pack(graph: ir.Graph, group: list[_Projection]) -> None:
    first = group[0].product
    name = first.inputs[1].name if first.inputs[1] is not None else None
    weight = add_weight(graph, f"{name}.packed", concatenate([p.weight for p in group], axis=1))
    product = ir.node("MatMul", [first.inputs[0], weight])
    nodes = [product]
    biases = [p.bias for p in group if p.bias is not None]
    if biases:
        bias = add_weight(graph, f"{name}.packed.bias", concatenate(biases, axis=0))
        nodes.append(ir.node("Add", [product.outputs[0], bias]))
    sizes = ir.tensor(np.array([p.weight.shape[1] for p in group], np.int64))
    constant = ir.node("Constant", [], attributes={"value": sizes})
    split = ir.node(
        "Split", [nodes[-1].outputs[0], constant.outputs[0]], attributes={"axis": -1}, num_outputs=len(group)
    )
    old = first.outputs[0]
    for node in nodes:
        node.outputs[0].type = old.type
        if old.shape is not None:
            node.outputs[0].shape = ir.Shape([*old.shape[:-1], sum(p.weight.shape[1] for p in group)])
    graph.insert_before(first, [*nodes, constant, split])
    for projection, output in zip(group, split.outputs, strict=True):
        output.type, output.shape = projection.output.type, projection.output.shape
        projection.output.replace_all_uses_with(output)
    for projection in group:
        user = projection.output.producer()
        graph.remove([n for n in {user, projection.product} if n is not None], safe=True)
