"""Nodes around a product of codes for what codes around 0 do not hold: a minimum a group, and another order of columns.

With codes c around 0, a scale s and a minimum m a group, and x the activations,

    sum_j x_j (s (c_j + 2^(bits - 1)) + m) = s sum_j x_j c_j + (m + 2^(bits - 1) s) sum_j x_j

so that a product of codes around 0 is corrected by one of the groups' sums of x with a small matrix of numbers. Products that
read the same x share its sums.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from enginewright.exporters.weights.stored_form import Values, WeightUse
from enginewright.exporters.weights.weight import QuantizedRows, Weight

OFFSETS, ORDER = "offsets", "order"
"""The last parts of the names of the tensors that `correction_parts` makes."""
_SHARED = "enginewright.corrections"  # in the meta of a value: what was made of it, by (kind, key)


def correction_parts(
    rows: QuantizedRows, shape: tuple[int, ...], offsets: Callable[[], np.ndarray]
) -> dict[str, Weight]:
    """Return the tensors that the nodes need besides codes and scales: offsets [groups, n] float32, order [k] int32.

    offsets: returns the `offsets_of` the rows; it is called only if these have minima.
    """
    n, k = shape
    parts: dict[str, Weight] = {}
    if rows.minima is not None:
        parts[OFFSETS] = Weight(shape=(k // rows.group_size, n), dtype=ir.DataType.FLOAT, load=offsets)
    return {**parts, **order_part(rows, k)}


def order_part(rows: QuantizedRows, k: int) -> dict[str, Weight]:
    """Return the order [k] int32 of the columns of `rows`, by its name; nothing where they are in their order."""
    if rows.order is None:
        return {}
    return {ORDER: Weight(shape=(k,), dtype=ir.DataType.INT32, load=partial(_order, rows))}


def offsets_of(bits: int, scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """Return m + 2^(bits - 1) s of scales and minima [n, groups]: [groups, n]."""
    offsets: np.ndarray = (minima + np.float32(1 << (bits - 1)) * scales).T
    return offsets


def reorder(use: WeightUse, values: Values, rows_hash: str) -> ir.Value:
    """Return the input of a product with its columns in the order of the codes; as it is without such an order."""
    if ORDER not in values:
        return use.input
    return _share(use, use.input, ("order", rows_hash), partial(_gather, values[ORDER]))


def correct_product(
    use: WeightUse, source: ir.Value, product: ir.Node, values: Values, group_size: int
) -> list[ir.Node]:
    """Return `product`, followed by the nodes that add the offsets' share of the result where there are offsets."""
    if OFFSETS not in values:
        return [product]
    sums = _share(use, source, ("sums", group_size), partial(_sum_groups, group_size))
    share = ir.node("MatMul", [sums, values[OFFSETS]])
    total = ir.node("Add", [product.outputs[0], share.outputs[0]])
    for node in (product, share):
        node.outputs[0].type, node.outputs[0].shape = use.node.outputs[0].type, use.node.outputs[0].shape
    return [product, share, total]


def correct_lookup(lookup: ir.Node, ids: ir.Value, values: Values, group_size: int) -> list[ir.Node]:
    """Return `lookup` of rows, followed by the nodes that add to each group of a row its offset where there are offsets."""
    if OFFSETS not in values:
        return [lookup]
    by_row = ir.node("Gather", [values[OFFSETS], ids], attributes={"axis": 1})  # [groups, ids ...]
    groups = values[OFFSETS].shape
    assert groups is not None and isinstance(groups[0], int)
    flat = reshaped(by_row.outputs[0], [groups[0], -1, 1])
    turned = ir.node("Transpose", [flat[-1].outputs[0]], attributes={"perm": [1, 0, 2]})
    rows = reshaped(lookup.outputs[0], [-1, groups[0], group_size])
    total = ir.node("Add", [rows[-1].outputs[0], turned.outputs[0]])
    shape = ir.node("Shape", [lookup.outputs[0]])
    result = ir.node("Reshape", [total.outputs[0], shape.outputs[0]])
    for node in (lookup, by_row, flat[-1], turned, rows[-1], total):
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return [lookup, by_row, *flat, turned, *rows, total, shape, result]


def _order(rows: QuantizedRows) -> np.ndarray:
    assert rows.order is not None
    return rows.order().astype(np.int32)


def _share(
    use: WeightUse, source: ir.Value, key: tuple[str, object], make: Callable[[ir.Value], list[ir.Node]]
) -> ir.Value:
    """Return what `make` makes of `source`: nodes before the first use, which later ones read as well."""
    made: dict[tuple[str, object], ir.Value] = source.meta.setdefault(_SHARED, {})
    if key not in made:
        nodes = make(source)
        use.graph.insert_before(use.node, nodes)
        made[key] = nodes[-1].outputs[0]
    return made[key]


def _gather(order: ir.Value, source: ir.Value) -> list[ir.Node]:
    node = ir.node("Gather", [source, order], attributes={"axis": -1})
    node.outputs[0].type, node.outputs[0].shape = source.type, source.shape
    return [node]


def _sum_groups(group_size: int, source: ir.Value) -> list[ir.Node]:
    """The sums of groups of the last axis: [..., k] -> [..., k / group_size]."""
    assert source.shape is not None, "the shape of a product's input is known"
    rank = len(source.shape)
    groups = reshaped(source, [*[0] * (rank - 1), -1, group_size])
    axes = ir.node("Constant", [], attributes={"value": ir.tensor(np.array([-1], np.int64))})
    sums = ir.node("ReduceSum", [groups[-1].outputs[0], axes.outputs[0]], attributes={"keepdims": 0})
    groups[-1].outputs[0].type = sums.outputs[0].type = source.type
    return [*groups, axes, sums]


def reshaped(source: ir.Value, shape: list[int]) -> list[ir.Node]:
    """Return the nodes that give `source` another shape, the last of which has the result."""
    constant = ir.node("Constant", [], attributes={"value": ir.tensor(np.array(shape, np.int64))})
    return [constant, ir.node("Reshape", [source, constant.outputs[0]])]
