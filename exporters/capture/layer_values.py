"""Finds the values of each layer in a captured decoder graph: input and output of attention, of its projection and of the block.

Nothing is looked up by name, because names come from torch's tracing. The attention nodes are ours and know their layer.
Everything else follows from the paths between them: the output of block l is the last value that lies on every path from the
attention of layer l to the logits, and from which the attention of layer l + 1 still reads. That holds for blocks with and
without norms after their parts, for parallel attention and feed-forward parts, and where a later layer reads keys or values
of an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from enginewright.exporters.weights.graph_weights import find_bias, weight_of
from enginewright.plugins.ops.op import DOMAIN
from enginewright.plugins.ops.registry import OPS

PRODUCTS = ("MatMul", "Gemm")
OTHER_BASIS = "enginewright.other_basis"
"""The key in ir.Value.meta of an attention's output whose numbers a pass has moved to another basis; it says which."""
SAME_STATES = ("Squeeze", "Unsqueeze", "Reshape", "Cast")
"""Ops that change the form of states and none of their numbers."""


@dataclass(frozen=True, kw_only=True)
class LayerValues:
    """The values of one layer; `find_layers` creates it. A value that the graph does not show is None.

    attention_input: what the projection of its values reads, [1, T, d] or [T, d].
    attention: what the attention node makes, [T, Hq, Dv].
    attention_output: the same as the output projection reads it, [1, T, Hq * Dv].
    projected: the output of that projection, with its bias, [1, T, d].
    block_output: the residual stream after the layer, [1, T, d].
    """

    attention_input: ir.Value | None
    attention: ir.Value
    attention_output: ir.Value | None
    projected: ir.Value | None
    block_output: ir.Value | None


def find_layers(graph: ir.Graph, logits: ir.Value, sampled_from: ir.Value | None) -> dict[int, LayerValues]:
    """Return the values of every layer that has an attention node, by its number.

    logits: the output of the graph.
    sampled_from: the states that the sampled rows are taken of; None where they are not known.
    """
    attentions = {node.attributes["layer"].as_int(): node for node in graph if _attends(node)}
    last = logits.producer()
    if last is None:
        return {}
    paths = _Paths(graph, attentions, last)
    places = {node: place for place, node in enumerate(graph)}
    found = {}
    for layer, node in attentions.items():
        product = _projection(node.outputs[0])
        projected = None if product is None else _with_bias(product)
        block = None if projected is None else paths.block_output(layer, projected, sampled_from)
        found[layer] = LayerValues(
            attention_input=_input_of(node, places),
            attention=node.outputs[0],
            attention_output=None if product is None else product.inputs[0],
            projected=projected,
            block_output=block,
        )
    return found


def find_sampled_states(graph: ir.Graph, read: ir.Value) -> ir.Value | None:
    """The states of all tokens of which the rows in `read` are taken by `sample_rows`; None where no Gather takes them."""
    node = read.producer()
    while node is not None and node.op_type in SAME_STATES:
        value = node.inputs[0]
        node = None if value is None else value.producer()
    is_sampling = node is not None and node.op_type == "Gather" and _is_form_of(node.inputs[1], "sample_rows")
    return node.inputs[0] if node is not None and is_sampling else None


def _attends(node: ir.Node) -> bool:
    """Whether a node is one of our attention ops, which are those that read the cache of a layer and new values."""
    return (
        node.domain == DOMAIN
        and "layer" in node.attributes
        and {"kv_lens", "value"} <= {port.name for port in OPS[node.op_type].inputs}
    )


def _is_form_of(value: ir.Value | None, name: str) -> bool:
    """Whether `value` is the input `name`, possibly reshaped or cast."""
    while value is not None and value.name != name:
        node = value.producer()
        if node is None or node.op_type not in SAME_STATES:
            return False
        value = node.inputs[0]
    return value is not None


def _input_of(attention: ir.Node, places: Mapping[ir.Node, int]) -> ir.Value | None:
    """What the product reads that an attention node's values come from.

    Values may come of those of earlier layers, too; the layer's own product is the last one in the graph.
    """
    value = attention.inputs[[port.name for port in OPS[attention.op_type].inputs].index("value")]
    todo, seen, products = [value], set[ir.Node](), list[ir.Node]()
    while todo:
        read = todo.pop()
        node = None if read is None else read.producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in PRODUCTS and weight_of(node.inputs[1]) is not None:
            products.append(node)
        else:
            todo += node.inputs
    return max(products, key=lambda each: places[each]).inputs[0] if products else None


def _projection(value: ir.Value) -> ir.Node | None:
    """The first product with a weight that reads `value`, through nodes that nothing else reads."""
    while True:
        readers = {node for node, _ in value.uses()}
        readers = {node for node in readers if _added_to(node) not in readers}
        if len(readers) != 1:
            return None
        node = readers.pop()
        if node.op_type in PRODUCTS:
            return node if weight_of(node.inputs[1]) is not None else None
        if len(node.outputs) != 1 or node.domain == DOMAIN:
            return None
        value = node.outputs[0]


def _added_to(node: ir.Node) -> ir.Node | None:
    """The product, its bias left out, to which an op of ours adds another product of the same input; None for other nodes."""
    if node.domain != DOMAIN or len(node.inputs) < 2 or node.inputs[0] is None:
        return None
    product = node.inputs[0].producer()
    if product is not None and product.op_type == "Add":
        made = [None if value is None else value.producer() for value in product.inputs]
        product = next((each for each in made if each is not None and each.op_type in PRODUCTS), None)
    if product is None or product.op_type not in PRODUCTS or product.inputs[0] is not node.inputs[1]:
        return None
    return product


def _with_bias(product: ir.Node) -> ir.Value:
    """What a product makes, after the Add of its bias if there is one, and after what an op of ours adds."""
    weight = weight_of(product.inputs[1])
    assert weight is not None
    is_rows = product.op_type == "Gemm" and product.attributes.get_int("transB", 0) == 1
    bias = find_bias(product, weight.shape[0 if is_rows else -1])
    value = product.outputs[0] if bias is None else bias[0].outputs[0]
    added = next((node for node, _ in value.uses() if _added_to(node) is product), None)
    return value if added is None else added.outputs[0]


class _Paths:
    """What lies on the paths of a graph; `find_layers` creates one for all layers.

    meet: of each node from which the logits come, the first node after it that all its paths to the logits go through.
    depth: of each node in the tree of these.
    upcoming: of each node, the lowest layer whose attention reads it, through any nodes; absent where none does.
    """

    def __init__(self, graph: ir.Graph, attentions: dict[int, ir.Node], last: ir.Node) -> None:
        layer_of = {node: layer for layer, node in attentions.items()}
        self.meet: dict[ir.Node, ir.Node | None] = {last: None}
        self.depth = {last: 0}
        self.upcoming: dict[ir.Node, int] = {}
        for node in reversed(list(graph)):
            users = {user for output in node.outputs for user, _ in output.uses()}
            layers = [layer_of.get(user, self.upcoming.get(user)) for user in users]
            if known := [layer for layer in layers if layer is not None]:
                self.upcoming[node] = min(known)
            after = [user for user in users if user in self.meet]
            if node is not last and after:
                first = after[0]
                for user in after[1:]:
                    first = self._common(first, user)
                self.meet[node], self.depth[node] = first, self.depth[first] + 1

    def _common(self, one: ir.Node, other: ir.Node) -> ir.Node:
        """The first node that all paths to the logits from either go through."""
        while one is not other:
            if self.depth[one] < self.depth[other]:
                one, other = other, one
            above = self.meet[one]
            assert above is not None, "every path ends at the logits"
            one = above
        return one

    def _chain(self, value: ir.Value) -> Iterator[ir.Node]:
        """The nodes that all paths from `value` to the logits go through, in order, the value's own first."""
        node = value.producer()
        while node is not None and node in self.meet:
            yield node
            node = self.meet[node]

    def block_output(self, layer: int, projected: ir.Value, sampled_from: ir.Value | None) -> ir.Value | None:
        """The residual stream after a layer."""
        chain = list(self._chain(projected))
        before_next = [node for node in chain if self.upcoming.get(node) == layer + 1]
        if before_next:
            return before_next[-1].outputs[0] if len(before_next) > 1 else None
        end = None if sampled_from is None else sampled_from.producer()
        if end is None or end not in chain:
            return None
        sums = [node for node in chain[1 : chain.index(end)] if _adds_states(node)]
        return sums[-1].outputs[0] if sums else None


def _adds_states(node: ir.Node) -> bool:
    """Whether a node is a sum of two computed values, so not the Add of a bias."""
    return node.op_type == "Add" and all(
        value is not None and weight_of(value) is None and not value.is_initializer() for value in node.inputs
    )
