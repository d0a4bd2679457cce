"""Finds layers of experts in a graph: transformers sorts the tokens by expert and multiplies each expert's by its matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from enginewright.exporters.weights.graph_weights import weight_of
from enginewright.exporters.weights.stored_form import Gate, Mixture


class _NoMatch(Exception):
    """The graph has something else at this place; `_expect` and its callers raise it."""


def find_mixtures(graph: ir.Graph) -> Iterator[Mixture]:
    """Yield the layers of experts of the form that transformers gives all models, `grouped_mm_experts_forward`.

    With p the order that sorts the flat list of experts, [T * K], and for each expert e the rows r_e of it in that order:

    1. s = x[p // K]
    2. u = the rows s[r_e] up_e of all e, one expert's after another's, plus up_bias[e] if there is one
    3. h = the gate of u
    4. y = the rows h[r_e] down_e of all e, plus down_bias[e] if there is one, times the flat factors [p]
    5. result = y in the order before p, as [T, K, H], summed over K
    """
    for node in graph:
        if node.op_type == "ReduceSum":
            try:
                found = _match(graph, node)
            except _NoMatch:
                continue
            yield found


@dataclass(frozen=True)
class _Grouped:
    """The products of all experts with their rows of one value; `_grouped` creates it.

    source: the value whose rows they read, [T * K, in].
    rows: the numbers of each expert's rows.
    products: the MatMul of each expert.
    bias: the weight [experts, out] that is added; None without one.
    """

    source: ir.Value
    rows: tuple[ir.Value, ...]
    products: tuple[ir.Node, ...]
    bias: ir.Value | None


def _match(graph: ir.Graph, total: ir.Node) -> Mixture:
    """The mixture whose last step is `total`."""
    _expect(_numbers(total.inputs[1]) == [1] and total.attributes.get_int("keepdims", 1) == 0)
    by_token = _producer(total.inputs[0], "Reshape")
    sizes = _numbers(by_token.inputs[1])
    _expect(len(sizes) == 3 and sizes[0] == -1)
    chosen = int(sizes[1])
    unsorted = _producer(by_token.inputs[0], "GatherND")
    inverse = _producer(_index_of(unsorted), "ScatterND")
    order = _index_of(inverse)
    sort = _producer(order, "TopK")
    _expect(order is sort.outputs[1] and sort.attributes.get_int("largest", 1) == 0)
    _counts_up(inverse.inputs[2])
    weighted = _producer(unsorted.inputs[0], "Mul")
    factors = _producer(_producer(weighted.inputs[1], "Unsqueeze").inputs[0], "GatherND")
    _expect(_index_of(factors) is order)
    down = _grouped(weighted.inputs[0], sort.outputs[0])
    gate, before = _gate(down.source)
    up = _grouped(before, sort.outputs[0])
    _expect(up.rows == down.rows)
    _check_rows(up.rows, sort.outputs[0])
    spread = _producer(up.source, "GatherND")
    _check_tokens(_index_of(spread), order, chosen)
    x, ids, weights = spread.inputs[0], sort.inputs[0], factors.inputs[0]
    _expect(x is not None and x.shape is not None and len(x.shape) == 2)
    assert x is not None and ids is not None and weights is not None
    return Mixture(
        graph=graph,
        result=total.outputs[0],
        x=x,
        ids=ids,
        weights=weights,
        chosen=chosen,
        up=up.products,
        down=down.products,
        up_bias=up.bias,
        down_bias=down.bias,
        gate=gate,
    )


def _grouped(value: ir.Value | None, experts: ir.Value) -> _Grouped:
    """The products that make `value`; experts: the sorted numbers of the experts."""
    bias: ir.Value | None = None
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Add":
        added = _producer(node.inputs[1], "GatherND")
        bias = added.inputs[0]
        _expect(_index_of(added) is experts and weight_of(bias) is not None)
        value = node.inputs[0]
    together = _producer(value, "Concat")
    _expect(together.attributes.get_int("axis", -1) == 0)
    products = tuple(_producer(part, "MatMul") for part in together.inputs)
    gathers = [_producer(product.inputs[0], "Gather") for product in products]
    sources = {id(gather.inputs[0]) for gather in gathers}
    _expect(len(sources) == 1 and all(gather.attributes.get_int("axis", 0) == 0 for gather in gathers))
    _expect(all(weight_of(product.inputs[1]) is not None for product in products))
    rows = tuple(gather.inputs[1] for gather in gathers)
    source = gathers[0].inputs[0]
    assert source is not None
    return _Grouped(source, tuple(one for one in rows if one is not None), products, bias)


def _check_rows(rows: Sequence[ir.Value], experts: ir.Value) -> None:
    """Raise _NoMatch unless the rows are runs that follow each other, as long as each expert occurs in `experts`."""
    ends: ir.Node | None = None
    last: ir.Value | None = None
    for number, value in enumerate(rows):
        run = _producer(value, "Range")
        start, end, step = run.inputs
        _expect(start is last if number else _numbers(start) == [0])
        _expect(_numbers(step) == [1] and end is not None)
        cut = _producer(end, "Squeeze").inputs[0]
        ends = ends or _producer(cut, "Split")
        _expect(cut is ends.outputs[number])
        last = end
    assert ends is not None
    _expect(len(ends.outputs) == len(rows))
    sums = _producer(_uncast(ends.inputs[0]), "CumSum")
    _expect(not sums.attributes.get_int("exclusive", 0) and not sums.attributes.get_int("reverse", 0))
    counts = _producer(_uncast(sums.inputs[0]), "ReduceSum")
    _expect(_numbers(counts.inputs[1]) == [0])
    equal = _producer(_uncast(counts.inputs[0]), "Equal")
    _expect(_uncast(_producer(_uncast(equal.inputs[0]), "Reshape").inputs[0]) is experts)
    _expect(_numbers(equal.inputs[1]) == list(range(len(rows))))


def _check_tokens(tokens: ir.Value, order: ir.Value, chosen: int) -> None:
    """Raise _NoMatch unless `tokens` is order // chosen, which torch writes with a correction for numbers below 0.

    A division by 1 has been dropped.
    """
    difference = _producer(tokens, "Sub")
    if chosen == 1:
        _expect(difference.inputs[0] is order)
    else:
        ratio = _producer(difference.inputs[0], "Div")
        _expect(ratio.inputs[0] is order and _numbers(ratio.inputs[1]) == [chosen])
    both = _producer(_uncast(difference.inputs[1]), "And")
    negative = _producer(_producer(both.inputs[0], "Equal").inputs[0], "Less")
    _expect(negative.inputs[0] is order and _numbers(negative.inputs[1]) == [0])


def _gate(value: ir.Value) -> tuple[Gate, ir.Value]:
    """The gate that makes `value`, and what it is made of: gates and the numbers that they multiply."""
    product = _producer(value, "Mul")
    first, second = product.inputs
    shifted = first.producer() if first is not None else None
    if shifted is not None and shifted.op_type == "Add":
        return _clamped(shifted, second)
    gate, activation = _activated(first)
    alternate, source = _halves(gate, second)
    return Gate(activation=activation, alternate=alternate), source


def _activated(value: ir.Value | None) -> tuple[ir.Value, str]:
    """What goes into an activation, and the activation's name."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Gelu":
        kind, source = node.attributes.get_string("approximate", "none"), node.inputs[0]
        assert source is not None
        return source, "gelu_tanh" if kind == "tanh" else "gelu"
    source, slope = _times_sigmoid(value)
    _expect(slope == 1.0)
    return source, "silu"


def _times_sigmoid(value: ir.Value | None) -> tuple[ir.Value, float]:
    """The factors g and c of g sigmoid(c g)."""
    source, share = _producer(value, "Mul").inputs
    inside = _producer(share, "Sigmoid").inputs[0]
    _expect(source is not None)
    assert source is not None
    if inside is source:
        return source, 1.0
    scaled = _producer(inside, "Mul")
    _expect(scaled.inputs[0] is source)
    return source, _number(scaled.inputs[1])


def _clamped(shifted: ir.Node, swish: ir.Value | None) -> tuple[Gate, ir.Value]:
    """The gate (u + 1) g sigmoid(slope g) of bounded g and u."""
    _expect(_number(shifted.inputs[1]) == 1.0)
    other = _producer(shifted.inputs[0], "Clip")
    bounded, slope = _times_sigmoid(swish)
    gate = _producer(bounded, "Clip")
    limit = _number(gate.inputs[2])
    _expect(gate.inputs[1] is None and _number(other.inputs[1]) == -limit and _number(other.inputs[2]) == limit)
    _expect(limit > 0 and math.isfinite(slope))
    alternate, source = _halves(gate.inputs[0], other.inputs[0])
    return Gate(activation="clamped_swiglu", alternate=alternate, slope=slope, limit=limit), source


def _halves(gate: ir.Value | None, other: ir.Value | None) -> tuple[bool, ir.Value]:
    """Whether gates and others lie in turn, or else in two halves; and the value that both are parts of."""
    node, second = (value.producer() if value is not None else None for value in (gate, other))
    _expect(node is not None and second is not None)
    assert node is not None and second is not None
    source = node.inputs[0]
    _expect(source is not None and second.inputs[0] is source)
    assert source is not None
    if node.op_type == "Split":
        _expect(node is second and len(node.outputs) == 2 and gate is node.outputs[0])
        _expect(node.attributes.get_int("axis", 0) in (-1, 1) and gate.shape == node.outputs[1].shape)  # type: ignore[union-attr]
        return False, source
    _expect(node.op_type == second.op_type == "Slice")
    _expect(_slice(node) == (0, 2) and _slice(second) == (1, 2))
    return True, source


def _slice(node: ir.Node) -> tuple[float, float]:
    """Begin and step of a Slice of the second axis that goes to its end."""
    begin, end, axis, step = (_number(value) for value in node.inputs[1:])
    _expect(axis in (-1, 1) and end >= np.iinfo(np.int32).max)
    return begin, step


def _counts_up(value: ir.Value | None) -> None:
    """Raise _NoMatch unless the value is 0, 1, 2 and so on."""
    run = _producer(value, "Range")
    _expect(_numbers(run.inputs[0]) == [0] and _numbers(run.inputs[2]) == [1])


def _index_of(node: ir.Node) -> ir.Value:
    """The rows that a GatherND reads, or a ScatterND writes."""
    rows = _producer(node.inputs[1], "Unsqueeze").inputs[0]
    assert rows is not None
    return rows


def _uncast(value: ir.Value | None) -> ir.Value | None:
    """What a Cast was made of; a value that none made stays."""
    node = value.producer() if value is not None else None
    return _uncast(node.inputs[0]) if node is not None and node.op_type == "Cast" else value


def _number(value: ir.Value | None) -> float:
    """The only number of a constant."""
    found = _numbers(value)
    _expect(len(found) == 1)
    return found[0]


def _numbers(value: ir.Value | None) -> list[float]:
    """The numbers of a constant."""
    constant = ir.convenience.get_const_tensor(value) if value is not None else None
    if constant is None:
        raise _NoMatch
    found: list[float] = constant.numpy().ravel().tolist()
    return found


def _producer(value: ir.Value | None, kind: str) -> ir.Node:
    """The node that makes the value, which has to be of the standard type `kind`."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != kind or node.domain != "":
        raise _NoMatch
    return node


def _expect(holds: bool) -> None:
    if not holds:
        raise _NoMatch
