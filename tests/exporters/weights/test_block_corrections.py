"""Tests of codes with minima and with columns in another order: products, lookups, what they share, types, TensorRT."""

from __future__ import annotations

import collections

import numpy as np
import onnx_ir as ir
import pytest

from enginewright.builders.tensorrt.block_weights import BlockWeightsPass
from enginewright.exporters.passes.narrow_activations import NarrowActivationsPass
from enginewright.exporters.passes.quantize_weights import QuantizeWeightsPass, output_projection
from enginewright.exporters.recipe import parse_weights
from enginewright.exporters.weights.graph_weights import KEY, to_initializers
from enginewright.exporters.weights.weight import QuantizedRows, StoredType, Weight, quantized_weight
from tests.support.exporters.small_graphs import Arrays, evaluate, make_graph, op_types, quantized, random_arrays

PRODUCTS = """g (float[1, T, {k}] x, float[{k}, 12] a, float[12] b, float[{k}, 12] c) => (float[1, T, 12] p, float[1, T, 12] q) {{
    p0 = MatMul (x, a)  p1 = Add (p0, b)  p = Neg (p1)  q0 = MatMul (x, c)  q = Neg (q0) }}"""
LOOKUP = """g (int64[2, T] ids, float[9, 32] e, float[32, 9] h) => (float[2, T, 32] r, float[2, T, 9] logits) {
    r0 = Gather (e, ids)  r = Neg (r0)  l = MatMul (r0, h)  logits = Neg (l) }"""
TIED = """g (int64[2, T] ids, float[9, 32] e) => (float[2, T, 32] r, float[S, 9] logits) <int64[2] shape = {-1, 32}> {
    r0 = Gather (e, ids)  r = Neg (r0)  flat = Reshape (r0, shape)  l = Gemm <transB = 1> (flat, e)  logits = Neg (l) }"""
IDS: Arrays = {"ids": np.array([[3, 0, 8, 8], [1, 7, 3, 2]])}
OFFSETS = ("", "zero_points", "minima")
Counts = collections.Counter[str]


def rows_of(weight: Weight) -> QuantizedRows:
    """The codes of a weight."""
    assert weight.quantized is not None
    return weight.quantized


def numbers(rows: QuantizedRows) -> np.ndarray:
    """The matrix that codes stand for, element by element."""
    codes, scales = rows.load()
    n, k = codes.shape
    order = np.arange(k) if rows.order is None else rows.order()
    result = np.empty((n, k), np.float32)
    for i in range(n):
        for j in range(k):
            group, code = j // rows.group_size, int(codes[i, j])
            if rows.zero_points is not None:
                code -= int(rows.zero_points()[i, group])
            value = scales[i, group] * np.float32(code + (0 if rows.minima is None else 1 << (rows.bits - 1)))
            result[i, order[j]] = value + (0 if rows.minima is None else rows.minima()[i, group])
    return result


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("order", [None, 1])
def test_restored_codes_are_the_oracles(offset: str, order: int | None) -> None:
    rows = rows_of(quantized(5, 24, 3, 8, offset=offset, order=order))
    np.testing.assert_array_equal(rows.restore(), numbers(rows))
    np.testing.assert_array_equal(rows.transposed().restore(), numbers(rows).T)
    assert bool(rows.order_hash) == (order is not None)


def attach(text: str, arrays: Arrays, chosen: dict[str, Weight], *, turned: str) -> tuple[ir.Model, Arrays]:
    """The graph with codes for the weights `chosen`, and the numbers of all; turned: names that the graph has transposed."""
    model, plain = make_graph(text, arrays), dict(arrays)
    for value in model.graph.inputs:
        if value.name in chosen:
            weight = chosen[value.name]
            value.meta[KEY] = weight.transposed() if value.name in turned else weight
            plain[value.name] = numbers(rows_of(weight)).T if value.name in turned else numbers(rows_of(weight))
    return model, plain


def products(
    chosen: dict[str, Weight], k: int, *, weights: str = "stored:compute=float32", for_cpu: bool = True
) -> tuple[ir.Model, list[np.ndarray], Arrays]:
    """Two products of one input after the pass, what they should give, and the feeds."""
    arrays = random_arrays(a=(k, 12), b=(12,), c=(k, 12))
    feeds = random_arrays(x=(1, 5, k))
    model, plain = attach(PRODUCTS.format(k=k), arrays, chosen, turned="ac")
    QuantizeWeightsPass(parse_weights(weights), for_cpu=for_cpu)(model)
    return model, evaluate(make_graph(PRODUCTS.format(k=k), plain), feeds), feeds


def check(model: ir.Model, expected: list[np.ndarray], feeds: Arrays, tolerance: float = 1e-5) -> Counts:
    """Compare with the largest expected number as the unit; return the numbers of nodes by type."""
    types = op_types(model)
    for got, wanted in zip(evaluate(model, feeds), expected, strict=True):
        assert got.shape == wanted.shape and got.dtype == wanted.dtype
        assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()
    return types


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("order", [None, 1])
@pytest.mark.parametrize(
    ("bits", "k", "group_size"),
    [(2, 64, 32), (3, 48, 16), (4, 64, 32), (5, 96, 48), (6, 32, 16), (8, 32, 32), (4, 20, 20), (8, 33, 33), (4, 7, 7)],
)
def test_products_with_and_without_a_bias(bits: int, k: int, group_size: int, order: int | None, offset: str) -> None:
    """Groups of 20, 33 and 7 are whole rows that do not fill a block; those of 48 are three blocks."""
    chosen = {
        name: quantized(12, k, bits, group_size, seed, offset=offset, order=order) for seed, name in enumerate("ac")
    }
    types = check(*products(chosen, k))
    assert types["MatMulNBits"] == 2 and types["Gather"] == (order is not None)
    assert types["ReduceSum"] == (offset == "minima") and types["MatMul"] == 2 * (offset == "minima")
    assert types["Add"] == 2 * (offset == "minima"), "the bias is part of the product"


def test_products_share_an_order_and_sums_only_if_they_are_the_same() -> None:
    def types(first: Weight, second: Weight) -> Counts:
        return check(*products({"a": first, "c": second}, 64))

    base = quantized(12, 64, 4, 32, offset="minima", order=1)
    same = types(base, quantized(12, 64, 5, 32, 1, offset="minima", order=1))
    assert (same["Gather"], same["ReduceSum"]) == (1, 1)
    smaller = types(base, quantized(12, 64, 4, 16, 1, offset="minima", order=1))
    assert (smaller["Gather"], smaller["ReduceSum"]) == (1, 2)
    other = types(base, quantized(12, 64, 4, 32, 1, offset="minima", order=2))
    assert (other["Gather"], other["ReduceSum"]) == (2, 2)
    plain = types(base, quantized(12, 64, 4, 32, 1, offset="minima"))
    assert (plain["Gather"], plain["ReduceSum"]) == (1, 2)
    mixed = types(base, quantized(12, 64, 4, 32, 1, offset="zero_points", order=1))
    assert (mixed["Gather"], mixed["ReduceSum"]) == (1, 1)


def test_rounded_activations_round_the_codes_share_alone() -> None:
    """Offsets are numbers: what int8 loses lies in the product of the codes."""
    chosen = {name: quantized(12, 64, 4, 32, seed, offset="minima", order=1) for seed, name in enumerate("ac")}
    model, expected, feeds = products(chosen, 64, weights="stored")
    assert all(node.attributes.get_int("accuracy_level") == 4 for node in model.graph if node.op_type == "MatMulNBits")
    check(model, expected, feeds, tolerance=0.02)


@pytest.mark.parametrize(
    ("offset", "for_cpu", "bits"), [("minima", True, 2), ("", True, 2), ("minima", False, 4), ("zero_points", True, 4)]
)
def test_codes_of_2_bits_stay_so_where_an_op_takes_them(offset: str, for_cpu: bool, bits: int) -> None:
    chosen = {"a": quantized(12, 64, 2, 32, offset=offset, order=3)}
    model, expected, feeds = products(chosen, 64, weights="stored", for_cpu=for_cpu)
    (product,) = (node for node in model.graph if node.op_type == "MatMulNBits")
    assert product.attributes.get_int("bits") == bits
    check(model, expected, feeds, tolerance=0.02)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 16), (8, 32), (3, 16)])
def test_a_lookup_of_ids_in_two_axes(offset: str, bits: int, group_size: int) -> None:
    chosen = {"e": quantized(9, 32, bits, group_size, offset=offset), "h": quantized(9, 32, 4, 16, 1, offset=offset)}
    model, plain = attach(LOOKUP, random_arrays(e=(9, 32), h=(32, 9)), chosen, turned="h")
    QuantizeWeightsPass(parse_weights("stored:compute=float32"))(model)
    head = output_projection(model.graph)
    assert head is not None and head.op_type == "MatMulNBits"
    types = check(model, evaluate(make_graph(LOOKUP, plain), IDS), IDS)
    assert (types["GatherBlockQuantized"], types["MatMulNBits"]) == (1, 1)


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_tied_matrix_is_stored_once(offset: str) -> None:
    model, plain = attach(TIED, random_arrays(e=(9, 32)), {"e": quantized(9, 32, 4, 16, offset=offset)}, turned="")
    QuantizeWeightsPass(parse_weights("stored:compute=float32"))(model)
    types = check(model, evaluate(make_graph(TIED, plain), IDS), IDS)
    assert (types["GatherBlockQuantized"], types["MatMulNBits"]) == (1, 1)
    kinds = [name.rpartition(".")[2] for name in model.graph.initializers if name.startswith("e.")]
    assert sorted(kinds) == sorted(
        {"codes", "scales", *({"": [], "zero_points": [offset], "minima": ["offsets"]}[offset])}
    )


def test_a_lookup_of_reordered_rows_is_one_of_numbers() -> None:
    model, plain = attach(TIED, random_arrays(e=(9, 32)), {"e": quantized(9, 32, 4, 16, order=1)}, turned="")
    QuantizeWeightsPass(parse_weights("stored:compute=float32"))(model)
    types = check(model, evaluate(make_graph(TIED, plain), IDS), IDS)
    assert types["GatherBlockQuantized"] == 0 and types["Gather"] == 2, "of rows, and of columns before the product"
    assert types["MatMulNBits"] == 1


HALF = 0.01  # rounding of inputs, offsets and sums to 11 bits, over some dozens of terms


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_graph_in_half_precision(offset: str) -> None:
    chosen = {name: quantized(12, 64, 4, 32, seed, offset=offset, order=1) for seed, name in enumerate("ac")}
    model, expected, feeds = products(chosen, 64, for_cpu=False)
    NarrowActivationsPass("float16")(model)
    product = next(node for node in model.graph if node.op_type == "MatMulNBits")
    assert product.inputs[0] is not None and product.inputs[0].dtype is ir.DataType.FLOAT16
    for node in (node for node in model.graph if node.op_type == "ReduceSum"):
        assert node.inputs[0] is not None and node.inputs[0].dtype is ir.DataType.FLOAT, (
            "sums leave the range of a half"
        )
    check(model, expected, feeds, HALF)


def test_a_lookup_and_its_product_in_half_precision() -> None:
    chosen = {"e": quantized(9, 32, 4, 16, offset="minima"), "h": quantized(9, 32, 4, 16, 1, offset="minima")}
    model, plain = attach(LOOKUP, random_arrays(e=(9, 32), h=(32, 9)), chosen, turned="h")
    QuantizeWeightsPass(parse_weights("stored:compute=float32"))(model)
    NarrowActivationsPass("float16")(model)
    check(model, evaluate(make_graph(LOOKUP, plain), IDS), IDS, HALF)


@pytest.mark.parametrize("offset", ["", "minima"])
@pytest.mark.parametrize(("bits", "k", "group_size"), [(2, 64, 32), (4, 64, 32), (8, 32, 32), (4, 20, 20)])
def test_tensorrt_gets_blocks_and_standard_nodes(bits: int, k: int, group_size: int, offset: str) -> None:
    chosen = {name: quantized(12, k, bits, group_size, seed, offset=offset, order=1) for seed, name in enumerate("ac")}
    model, expected, feeds = products(chosen, k, for_cpu=False)
    to_initializers(model.graph)
    BlockWeightsPass()(model)
    assert not [node for node in model.graph if node.domain]
    types = check(model, expected, feeds)
    assert types["DequantizeLinear"] == 2 and types["Gather"] == 1
    assert types["MatMul"] == (4 if offset else 2)


def test_tensorrt_looks_up_rows_with_minima() -> None:
    model, plain = attach(TIED, random_arrays(e=(9, 32)), {"e": quantized(9, 32, 4, 16, offset="minima")}, turned="")
    QuantizeWeightsPass(parse_weights("stored:compute=float32"))(model)
    to_initializers(model.graph)
    BlockWeightsPass()(model)
    assert not [node for node in model.graph if node.domain]
    check(model, evaluate(make_graph(TIED, plain), IDS), IDS)


def test_what_is_told_of_a_checkpoints_codes() -> None:
    weight = quantized(12, 64, 3, 32, offset="minima", order=1)
    found = StoredType(name="Q", matrices=3)
    chosen = {"a": quantized_weight(weight.shape, rows_of(weight), found), "c": quantized(12, 64, 4, 32)}
    model, _ = attach(PRODUCTS.format(k=64), random_arrays(a=(64, 12), b=(12,), c=(64, 12)), chosen, turned="ac")
    change = QuantizeWeightsPass(parse_weights("stored"))
    change(model)
    kept = "4 bits in blocks of 32, with minima, reordered"
    assert change.codes() == [{"type": "Q", "matrices": 3, "weights": 12 * 64, "kept": kept}]
