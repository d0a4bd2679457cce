"""Fuses the output projection with the choice of each row's token, so that unread logits are never written."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from enginewright.plugins.ops.block_linear import BLOCK_LINEAR
from enginewright.plugins.ops.greedy_linear import GREEDY_LINEAR
from enginewright.plugins.ops.greedy_sample import GREEDY_SAMPLE
from enginewright.plugins.ops.op import DOMAIN
from enginewright.runtime.artifact.decoder_graph import GREEDY, LOGITS, LOGITS_WANTED


class FuseGreedyLinearPass(ir.passes.InPlacePass):
    """BlockLinear -> Squeeze -> logits -> GreedySample becomes GreedyLinear.

    1. The logits are the squeezed product itself: no node is between, and none but GreedySample reads them.
    2. The product has neither a gate nor a residual.
    3. The graph gets an optional input, `logits_wanted`, whose default is 1: the logits are written.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        outputs = {value.name: value for value in model.graph.outputs}
        product = _product(outputs.get(LOGITS.name), outputs.get(GREEDY.name))
        if product is None:
            return ir.passes.PassResult(model, modified=False)
        _fuse(model.graph, product, outputs[LOGITS.name], outputs[GREEDY.name])
        return ir.passes.PassResult(model, modified=True)


def _product(logits: ir.Value | None, tokens: ir.Value | None) -> ir.Node | None:
    """The product that makes the logits, of which nothing but the tokens is made."""
    if logits is None or tokens is None or len(logits.uses()) != 1 or tokens.uses():
        return None
    choice, squeeze = tokens.producer(), logits.producer()
    if (
        choice is None
        or (choice.domain, choice.op_type) != (DOMAIN, GREEDY_SAMPLE.name)
        or choice.inputs[0] is not logits
    ):
        return None
    if (
        squeeze is None
        or squeeze.op_type != "Squeeze"
        or squeeze.inputs[0] is None
        or len(squeeze.inputs[0].uses()) != 1
    ):
        return None
    product = squeeze.inputs[0].producer()
    if product is None or (product.domain, product.op_type) != (DOMAIN, BLOCK_LINEAR.name):
        return None
    given = {port.name for port, value in zip(BLOCK_LINEAR.inputs, product.inputs, strict=False) if value is not None}
    return None if product.attributes.get_int("gate", 0) or "residual" in given else product


def _fuse(graph: ir.Graph, product: ir.Node, logits: ir.Value, tokens: ir.Value) -> None:
    wanted = ir.Value(name=LOGITS_WANTED, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    wanted.const_value = ir.tensor(np.ones(1, np.int64), name=LOGITS_WANTED)
    graph.inputs.append(wanted)
    graph.register_initializer(wanted)
    given = {port.name: value for port, value in zip(BLOCK_LINEAR.inputs, product.inputs, strict=False)}
    inputs = [wanted if port.name == "wanted" else given.get(port.name) for port in GREEDY_LINEAR.inputs]
    known = {attribute.name for attribute in GREEDY_LINEAR.attributes}
    attributes = {name: value for name, value in product.attributes.items() if name in known}
    fused = ir.Node(DOMAIN, GREEDY_LINEAR.name, inputs, attributes.values(), num_outputs=2)
    choice = tokens.producer()
    assert choice is not None
    graph.insert_before(choice, fused)
    for old, new in zip((logits, tokens), fused.outputs, strict=True):
        new.type, new.shape, name = old.type, old.shape, old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = None, name
    graph.remove(choice, safe=True)
