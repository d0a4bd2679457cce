"""Puts AddLora after the products of the layers that adapters may change: first a mark, then, with the products packed, the node.

A mark is an AddLora without an adapter's inputs. It is put while each projection is a product of its own, whose weight has the
layer's name; PackProjectionsPass then joins projections, and the marks of all parts of a joined product become one node.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from enginewright.exporters.capture.layer_values import OTHER_BASIS
from enginewright.exporters.methods.adapters.adapted_layers import is_chosen
from enginewright.exporters.methods.anchors import ConditionInputs
from enginewright.exporters.weights.graph_weights import find_bias, weight_of
from enginewright.plugins.ops.add_lora import ADD_LORA
from enginewright.plugins.ops.op import DOMAIN
from enginewright.runtime.artifact.manifest import AdapterTarget
from enginewright.runtime.errors import UnsupportedError

MODULE = "enginewright.adapters.module"
"""The key in ir.Node.meta of a mark: the name of the layer."""


class MarkProductsPass(ir.passes.InPlacePass):
    """Put a mark after the product of every linear layer of the blocks, after its bias.

    1. A product MatMul(x, weight) is marked if its weight has the name of a layer's weight, as it is or moved.
    2. Values that a pass has moved to another basis, as KVarN's rotation does, are refused: factors are of the model's own.

    chosen: as of `is_chosen`.

    Raises:
        UnsupportedError: the basis of a value is another.
    """

    def __init__(self, chosen: str) -> None:
        self._chosen = chosen

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in model.graph:
            if basis := next((value.meta[OTHER_BASIS] for value in node.outputs if OTHER_BASIS in value.meta), ""):
                raise UnsupportedError(
                    f"adapters: got the output of attention {basis}, expected the model's own numbers; name adapters before the "
                    "method that moves it, in the list of methods to apply"
                )
        marked: set[str] = set()
        for node in list(model.graph):
            module = _module_of(node)
            if module and module not in marked and is_chosen(module, self._chosen):
                _mark(model.graph, node, module)
                marked.add(module)
        return ir.passes.PassResult(model, modified=bool(marked))


def complete(graph: ir.Graph, family: str, targets: Mapping[str, AdapterTarget], inputs: ConditionInputs) -> None:
    """Turn every mark into an AddLora, one for all the marks of a packed product.

    Raises:
        UnsupportedError: a layer of `targets` has no mark.
    """
    places = {
        target.module.format(layer): (name, place)
        for name, target in targets.items()
        for place, layer in enumerate(target.layers)
    }
    marks = {node.meta[MODULE]: node for node in graph if MODULE in node.meta}
    if missing := sorted(places.keys() - marks.keys()):
        raise UnsupportedError(
            f"adapters: {family}: got a graph that does not show the product of {missing[0]!r} alone, expected one; name the "
            "layers that requests need in targets, without this one"
        )
    done: set[ir.Node] = set()
    for module in places:
        if (mark := marks[module]) not in done:
            siblings = _siblings(mark, targets, places)
            done.update(siblings)
            _complete(graph, siblings, [places[each.meta[MODULE]] for each in siblings], inputs)


def _module_of(node: ir.Node) -> str:
    """The name of the layer whose product this is; empty for any other node."""
    if node.op_type != "MatMul" or node.domain != "" or weight_of(node.inputs[1]) is None:
        return ""
    value = node.inputs[1]
    module, found, _ = ("" if value is None or value.name is None else value.name).partition(".weight")
    return module if found else ""


def _mark(graph: ir.Graph, product: ir.Node, module: str) -> None:
    weight = weight_of(product.inputs[1])
    assert weight is not None
    bias = find_bias(product, weight.shape[1])
    last = product if bias is None else bias[0]
    value = last.outputs[0]
    readers = list(value.uses())
    mark = ir.node(ADD_LORA.name, [value, product.inputs[0]], {"layer": 0}, domain=DOMAIN)
    mark.outputs[0].type, mark.outputs[0].shape = value.type, value.shape
    mark.meta[MODULE] = module
    graph.insert_after(last, mark)
    for node, index in readers:
        node.replace_input_with(index, mark.outputs[0])


def _siblings(
    mark: ir.Node, targets: Mapping[str, AdapterTarget], places: Mapping[str, tuple[str, int]]
) -> list[ir.Node]:
    """The marks of all outputs of the Split that this one reads, in their order; this one alone where they cannot be one node."""
    value = mark.inputs[0]
    split = None if value is None else value.producer()
    marks = []
    for output in split.outputs if split is not None and split.op_type == "Split" else ():
        readers = [node for node, _ in output.uses()]
        if len(readers) != 1 or readers[0].meta.get(MODULE) not in places:
            return [mark]
        marks.append(readers[0])
    found = [places[each.meta[MODULE]] for each in marks]
    same = len({(place, targets[name].layers) for name, place in found}) == 1
    return marks if same else [mark]


def _complete(graph: ir.Graph, marks: list[ir.Node], places: list[tuple[str, int]], inputs: ConditionInputs) -> None:
    """Put one AddLora in place of the marks, before their Split if there are several."""
    first = marks[0]
    assert inputs.scale is not None and first.inputs[0] is not None
    split = first.inputs[0].producer() if len(marks) > 1 else None
    base = first.inputs[0] if split is None else split.inputs[0]
    assert base is not None
    factors = [inputs.tensors[f"{name}_{part}"] for name, _ in places for part in "ab"]
    read = [base, first.inputs[1], inputs.index, inputs.scale, *factors]
    node = ir.node(ADD_LORA.name, read, {"layer": places[0][1]}, domain=DOMAIN)
    node.outputs[0].type, node.outputs[0].shape = base.type, base.shape
    graph.insert_before(first if split is None else split, node)
    if split is None:
        first.outputs[0].replace_all_uses_with(node.outputs[0])
    else:
        split.replace_input_with(0, node.outputs[0])
        for mark in marks:
            assert mark.inputs[0] is not None
            mark.outputs[0].replace_all_uses_with(mark.inputs[0])
    graph.remove(marks, safe=True)
