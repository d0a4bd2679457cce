"""Tests of each pass on small graphs: the cases of its docstring, and equal values before and after."""

from __future__ import annotations

import collections
import dataclasses
from typing import ClassVar

import numpy as np
import pytest
from onnxscript.rewriter import RewritePass

from enginewright.exporters.passes.fold_weights import FoldWeightsPass
from enginewright.exporters.passes.gather_sample_rows import GatherSampleRowsPass
from enginewright.exporters.passes.norm_token_major import NormTokenMajorPass
from enginewright.exporters.passes.pack_projections import PackProjectionsPass
from enginewright.exporters.passes.quantize_weights import QuantizeWeightsPass
from enginewright.exporters.passes.rotate_token_major import RotateTokenMajorPass
from enginewright.exporters.passes.simplify import RULES, SimplifyPass
from enginewright.exporters.passes.tie_embedding import TieEmbeddingPass
from enginewright.exporters.weights.block_codes import block_form, dequantize_blocks, quantize_blocks, store_codes
from enginewright.exporters.weights.graph_weights import KEY, weight_of
from enginewright.exporters.weights.registry import Storage, choose_storage
from enginewright.exporters.weights.weight import StoredType
from enginewright.runtime.errors import ExportError
from tests.support.exporters.small_graphs import (
    Arrays,
    check_pass,
    evaluate,
    make_graph,
    op_types,
    quantized,
    random_arrays,
)

X = random_arrays(x=(1, 5, 8))
Types = collections.Counter


class TestFoldWeights:
    @pytest.mark.parametrize(
        "body",
        [
            "w1 = Transpose <perm = [1, 0]> (w)  y = MatMul (x, w1)",
            "w1 = Add (w, one)  w2 = Transpose <perm = [1, 0]> (w1)  y = MatMul (x, w2)",
            "w1 = Mul (one, w)  w2, w3 = Split <axis = 0, num_outputs = 2> (w1)  w4 = Add (w2, w3)  y = Mul (x, w4)",
            "w1 = Slice (w, start, stop)  w2 = Squeeze (w1, start)  y = Add (x, w2)",
            "w1 = Gather <axis = 0> (w, start)  w2 = Identity (w1)  y = Add (x, w2)",
        ],
    )
    def test_weights_and_constants_fold(self, body: str) -> None:
        text = f"""g (float[1, T, 8] x, float[2, 8] w) => (float[1, T, N] y)
            <float[1] one = {{1}}, int64[1] start = {{0}}, int64[1] stop = {{1}}> {{ {body} }}"""
        if "perm" not in body:
            text = text.replace("N]", "8]")
        types, modified = check_pass(FoldWeightsPass(), text, random_arrays(w=(2, 8)), X)
        assert modified and sum(types.values()) == 1, types

    def test_nodes_without_a_weight_are_left(self) -> None:
        text = """g (float[1, T, 8] x, float[8] w) => (float[1, T, 8] y) <float[1] one = {1}, float[1] two = {2}>
            { c = Add (one, two)  x1 = Mul (x, c)  y = Add (x1, w) }"""
        types, modified = check_pass(FoldWeightsPass(), text, random_arrays(w=(8,)), X)
        assert not modified and types == Types(Add=2, Mul=1)

    def test_other_types_are_left(self) -> None:
        text = "g (float[1, T, 8] x, float[8] w) => (float[1, T, 8] y) { w1 = Exp (w)  y = Add (x, w1) }"
        assert not check_pass(FoldWeightsPass(), text, random_arrays(w=(8,)), X)[1]

    def test_a_weight_read_twice_serves_both(self) -> None:
        text = """g (float[1, T, 8] x, float[8, 8] w) => (float[1, T, 8] y)
            { w1 = Transpose <perm = [1, 0]> (w)  a = MatMul (x, w1)  b = MatMul (x, w)  y = Add (a, b) }"""
        assert check_pass(FoldWeightsPass(), text, random_arrays(w=(8, 8)), X)[0] == Types(MatMul=2, Add=1)

    @pytest.mark.parametrize(("body", "kept"), [("w1 = Identity (w)", False), ("w1 = Add (w, one)", False), ("", True)])
    def test_codes_that_a_graph_computes_with_are_reported(self, body: str, kept: bool) -> None:
        read = "w1" if body else "w"
        text = f"""g (float[1, T, 32] x, float[4, 32] w) => (float[1, T, 4] y) <float[1] one = {{1}}>
            {{ {body} t = Transpose <perm = [1, 0]> ({read})  m = MatMul (x, t)  y = Neg (m) }}"""
        model = make_graph(text)
        codes = dataclasses.replace(quantized(4, 32, group_size=16), stored=StoredType(name="Q4_1"))
        next(value for value in model.graph.inputs if value.name == "w").meta[KEY] = codes
        FoldWeightsPass()(model)
        quantise = QuantizeWeightsPass(choose_storage("stored"))
        quantise(model)
        (told,) = quantise.codes()
        assert (told["type"], told["matrices"], told["weights"], "kept" in told) == ("Q4_1", 1, 128, kept)
        if not kept:
            assert told["restored"].startswith("the graph reads a part of it, or computes with it")


class TestPackProjections:
    WEIGHTS = random_arrays(a=(8, 4), b=(8, 6), c=(8, 2), i=(4,), j=(6,))
    HEAD = """g (float[1, T, 8] x, float[8, 4] a, float[8, 6] b, float[8, 2] c, float[4] i, float[6] j)
        => (float[1, T, 4] p, float[1, T, 6] q, float[1, T, 2] r)"""

    def check(self, body: str) -> tuple[Types[str], bool]:
        return check_pass(PackProjectionsPass(), f"{self.HEAD} {{ {body} }}", self.WEIGHTS, X)

    def test_products_of_one_input(self) -> None:
        types, modified = self.check(
            "p0 = MatMul (x, a) q0 = MatMul (x, b) r0 = MatMul (x, c) p = Neg (p0) q = Neg (q0) r = Neg (r0)"
        )
        assert modified and types == Types(MatMul=1, Split=1, Neg=3)

    def test_with_biases(self) -> None:
        types, modified = self.check(
            """p0 = MatMul (x, a) p1 = Add (p0, i) q0 = MatMul (x, b) q1 = Add (j, q0)
            y = Neg (x) r0 = MatMul (y, c) p = Neg (p1) q = Neg (q1) r = Neg (r0)"""
        )
        assert modified and types == Types(MatMul=2, Add=1, Split=1, Neg=4)

    def test_only_those_alike(self) -> None:
        types, modified = self.check(
            "p0 = MatMul (x, a) p1 = Add (p0, i) q0 = MatMul (x, b) r0 = MatMul (x, c) p = Neg (p1) q = Neg (q0) r = Neg (r0)"
        )
        assert modified and types == Types(MatMul=2, Add=1, Split=1, Neg=3)

    def test_a_product_that_others_read_too_keeps_its_sum(self) -> None:
        types, modified = self.check(
            """p0 = MatMul (x, a) p1 = Add (p0, i) p2 = Add (p1, p0) q0 = MatMul (x, b) q1 = Add (q0, j)
            r0 = MatMul (x, c) p = Neg (p2) q = Neg (q1) r = Neg (r0)"""
        )
        assert modified and types == Types(MatMul=2, Add=3, Split=1, Neg=3)

    def test_alone_stays_alone(self) -> None:
        types, modified = self.check("y = Neg (x) z = Abs (x) p = MatMul (x, a) q = MatMul (y, b) r = MatMul (z, c)")
        assert not modified and types["MatMul"] == 3


class TestTieEmbedding:
    TEXT = """g (int64[1, T] ids, float[9, 8] w, float[9, 8] v) => (float[1, T, 9] y)
        { h = Gather (w, ids)  t = Transpose <perm = [1, 0]> (w)  y0 = MatMul (h, t)  y = Neg (y0) }"""
    WEIGHTS = random_arrays(w=(9, 8), v=(9, 8))
    IDS: ClassVar[Arrays] = {"ids": np.array([[3, 0, 8, 8]])}

    def test_a_tied_projection_reads_the_embedding(self) -> None:
        types, modified = check_pass(TieEmbeddingPass(), self.TEXT, self.WEIGHTS, self.IDS)
        assert modified and types["Gemm"] == 1 and types["MatMul"] == 0

    @pytest.mark.parametrize(("old", "new"), [("(w)", "(v)"), ("Gather (w", "Gather (v")])
    def test_another_matrix_is_left(self, old: str, new: str) -> None:
        assert not check_pass(TieEmbeddingPass(), self.TEXT.replace(old, new), self.WEIGHTS, self.IDS)[1]

    def test_several_rows_are_left(self) -> None:
        text = self.TEXT.replace("[1, T", "[2, T")
        assert not check_pass(TieEmbeddingPass(), text, self.WEIGHTS, {"ids": np.array([[3, 0], [1, 2]])})[1]


class TestGatherSampleRows:
    TEXT = """g (float[1, T, 8] x, int64[N] rows) => (float[1, N, 8] y) <int64[1] axes = {-1}>
        { s = Transpose <perm = [1, 0, 2]> (x)  i = Unsqueeze (rows, axes)  n = GatherND <batch_dims = 0> (s, i)
          y = Transpose <perm = [1, 0, 2]> (n) }"""
    FEEDS: ClassVar[Arrays] = {**X, "rows": np.array([4, 0, 4])}

    def test_one_gather(self) -> None:
        types, modified = check_pass(GatherSampleRowsPass(), self.TEXT, {}, self.FEEDS)
        assert modified and types == Types(Gather=1)

    def test_other_layouts_are_left(self) -> None:
        text = self.TEXT.replace("perm = [1, 0, 2]> (n)", "perm = [1, 0, 2]> (z)").replace("y =", "z = Neg (n) y =")
        assert not check_pass(GatherSampleRowsPass(), text, {}, self.FEEDS)[1]


class TestNormTokenMajor:
    TEXT = """g (float[1, T, 2, 4] x, float[4] w) => (float[1, 2, T, 4] y)
        { s = Transpose <perm = [0, 2, 1, 3]> (x)  n = RMSNormalization <axis = -1, epsilon = 0.01> (s, w)  y = Neg (n) }"""
    WEIGHTS, FEEDS = random_arrays(w=(4,)), random_arrays(x=(1, 5, 2, 4))

    def test_the_norm_comes_first(self) -> None:
        model = make_graph(self.TEXT, self.WEIGHTS)
        NormTokenMajorPass()(model)
        assert [n.op_type for n in model.graph if n.op_type != "Constant"] == ["RMSNormalization", "Transpose", "Neg"]
        assert check_pass(NormTokenMajorPass(), self.TEXT, self.WEIGHTS, self.FEEDS)[1]

    def test_over_other_axes_it_stays(self) -> None:
        text = self.TEXT.replace("axis = -1", "axis = 2").replace("float[4] w", "float[1, 4] w")
        assert not check_pass(NormTokenMajorPass(), text, random_arrays(w=(1, 4)), self.FEEDS)[1]


class TestRotateTokenMajor:
    TEXT = """g (float[1, T, 8] x, float[1, T, 2] cos, float[1, T, 2] sin) => (float[1, T, 2, 4] y)
        <int64[4] shape = {1, -1, 2, 4}> {
          h = Reshape (x, shape)  s = Transpose <perm = [0, 2, 1, 3]> (h)
          r = RotaryEmbedding (s, cos, sin)  y0 = Transpose <perm = [0, 2, 1, 3]> (r)  y = Neg (y0) }"""
    FEEDS = random_arrays(x=(1, 5, 8), cos=(1, 5, 2), sin=(1, 5, 2))

    def test_both_transposes_go(self) -> None:
        types, modified = check_pass(RotateTokenMajorPass(), self.TEXT, {}, self.FEEDS)
        assert modified and types["Transpose"] == 0 and types["RotaryEmbedding"] == 1

    def test_without_a_flat_source_it_reshapes(self) -> None:
        text = self.TEXT.replace("(x, shape)  s", "(x, shape)  h1 = Abs (h)  s").replace("3]> (h)", "3]> (h1)")
        types, modified = check_pass(RotateTokenMajorPass(), text, {}, self.FEEDS)
        assert modified and types["Transpose"] == 0

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("y = Neg (y0)", "z = Abs (r)  z0 = Transpose <perm = [0, 2, 1, 3]> (z)  y = Add (y0, z0)"),
            ("s = Transpose <perm = [0, 2, 1, 3]> (h)", "s0 = Transpose <perm = [0, 2, 1, 3]> (h)  s = Abs (s0)"),
        ],
    )
    def test_with_other_neighbours_it_stays(self, old: str, new: str) -> None:
        assert not check_pass(RotateTokenMajorPass(), self.TEXT.replace(old, new), {}, self.FEEDS)[1]


class TestQuantizeWeights:
    TEXT = """g (int64[1, T] ids, float[9, 32] e, float[32, 12] a, float[12] b, float[12, 32] c, float[32, 9] h)
        => (float[1, T, 9] logits) {
          x = Gather (e, ids)  y0 = MatMul (x, a)  y = Add (y0, b)  z = MatMul (y, c)  s = Add (x, z)
          l = MatMul (s, h)  logits = Neg (l) }"""
    WEIGHTS = random_arrays(e=(9, 32), a=(32, 12), b=(12,), c=(12, 32), h=(32, 9))
    IDS: ClassVar[Arrays] = {"ids": np.array([[3, 0, 8, 8]])}

    def restored(self, name: str, storage: Storage) -> np.ndarray:
        """A weight as the engine holds it; rows run along the inputs of its product."""
        rows = self.WEIGHTS[name] if name == "e" else self.WEIGHTS[name].T
        codes, scales = quantize_blocks(rows, int(storage.kind[3:]), storage.options.block_size)
        values = dequantize_blocks(codes, scales, int(storage.kind[3:]), rows.shape[1])
        return values if name == "e" else values.T

    @pytest.mark.parametrize("kind", ["int4", "int8"])
    @pytest.mark.parametrize(("embedding", "lm_head"), [(True, True), (False, True), (True, False), (False, False)])
    def test_products_and_embedding(self, kind: str, embedding: bool, lm_head: bool) -> None:
        storage = choose_storage(
            kind, {"block_size": 16, "compute": "float32", "embedding": embedding, "lm_head": lm_head}
        )
        model = make_graph(self.TEXT, self.WEIGHTS)
        assert QuantizeWeightsPass(storage)(model).modified
        types = op_types(model)
        assert (types["MatMulNBits"], types["MatMul"]) == (2 + lm_head, 1 - lm_head)
        assert (types["GatherBlockQuantized"], types["Gather"]) == (embedding, not embedding)
        assert types["Add"] == 1, "the bias is part of the product"
        names = {"a", "c", *(["e"] if embedding else []), *(["h"] if lm_head else [])}
        plain = {name: self.restored(name, storage) if name in names else w for name, w in self.WEIGHTS.items()}
        expected = evaluate(make_graph(self.TEXT, plain), self.IDS)[0]
        np.testing.assert_allclose(evaluate(model, self.IDS)[0], expected, atol=1e-4, rtol=0)

    def test_float32_changes_nothing(self) -> None:
        assert not check_pass(QuantizeWeightsPass(choose_storage()), self.TEXT, self.WEIGHTS, self.IDS)[1]

    def test_an_embedding_that_is_no_whole_number_of_blocks_stays(self) -> None:
        model = make_graph(self.TEXT, self.WEIGHTS)
        QuantizeWeightsPass(choose_storage("int4", {"block_size": 64}))(model)
        assert op_types(model)["Gather"] == 1 and op_types(model)["MatMulNBits"] == 3

    def test_a_tied_matrix_is_stored_once(self) -> None:
        text = """g (int64[1, T] ids, float[9, 32] e) => (float[1, T, 9] logits) <int64[1] zero = {0}> {
            x = Gather (e, ids)  r = Squeeze (x, zero)  p = Gemm <transB = 1> (r, e)  logits = Unsqueeze (p, zero) }"""
        storage = choose_storage("int4", {"compute": "float32"})
        model = make_graph(text, {"e": self.WEIGHTS["e"]})
        QuantizeWeightsPass(storage)(model)
        assert [v.name for v in model.graph.inputs if weight_of(v) and v.uses()] == ["e.codes", "e.scales"]
        expected = evaluate(make_graph(text, {"e": self.restored("e", storage)}), self.IDS)[0]
        np.testing.assert_allclose(evaluate(model, self.IDS)[0], expected, atol=1e-4, rtol=0)

    def test_no_weight_is_loaded(self) -> None:
        QuantizeWeightsPass(choose_storage("int4"))(make_graph(self.TEXT, self.WEIGHTS, closed=True))

    @pytest.mark.parametrize("kind", ["float32", "int4"])
    @pytest.mark.parametrize(("bits", "group_size"), [(2, 16), (3, 32), (4, 32), (4, 16), (8, 32)])
    def test_what_a_method_has_quantised_is_stored_as_it_is(self, bits: int, group_size: int, kind: str) -> None:
        """`a` [32, 12] by a method, all else by the recipe; its 12 rows have groups of 16 or 32 columns."""
        chosen = quantized(12, 32, bits=bits, group_size=group_size)
        blocks = {"block_size": 16, "embedding": False, "lm_head": False} if kind == "int4" else {}
        storage = choose_storage(kind, {"compute": "float32", **blocks})
        model = make_graph(self.TEXT, self.WEIGHTS)
        next(v for v in model.graph.inputs if v.name == "a").meta[KEY] = chosen.transposed()
        assert QuantizeWeightsPass(storage)(model).modified
        product = next(n for n in model.graph if n.op_type == "MatMulNBits")
        assert product.attributes.get_int("bits") == max(bits, 4)
        assert product.attributes.get_int("block_size") == group_size
        assert op_types(model)["MatMulNBits"] == (2 if kind == "int4" else 1)
        others = {"c"} if kind == "int4" else set()
        plain = {n: self.restored(n, storage) if n in others else w for n, w in self.WEIGHTS.items()}
        expected = evaluate(make_graph(self.TEXT, {**plain, "a": chosen.load().T}), self.IDS)[0]
        np.testing.assert_allclose(evaluate(model, self.IDS)[0], expected, atol=1e-4, rtol=0)

    @pytest.mark.parametrize(
        ("group_size", "k", "block_size"),
        [(32, 64, 32), (896, 896, 128), (4864, 4864, 256), (48, 96, 16), (60, 60, 16), (1, 1, 16), (512, 1024, 256)],
    )
    @pytest.mark.parametrize("bits", [2, 3, 4, 8])
    def test_blocks_hold_the_codes_of_any_group(self, bits: int, group_size: int, k: int, block_size: int) -> None:
        weight = quantized(5, k, bits=bits, group_size=group_size)
        stored, size = block_form(bits, group_size, k)
        assert (stored, size) == (max(bits, 4), block_size)
        assert weight.quantized is not None
        codes, scales = store_codes(*weight.quantized.load(), group_size, stored, size)
        np.testing.assert_array_equal(dequantize_blocks(codes, scales, stored, k), weight.load())

    @pytest.mark.parametrize(
        ("group_size", "k", "expected"),
        [
            (32, 64, (2, 32)),
            (64, 128, (2, 64)),
            (896, 896, (2, 128)),
            (48, 96, (4, 16)),
            (96, 96, (2, 32)),
            (60, 60, (4, 16)),
        ],
    )
    def test_two_bits_stay_two_where_the_op_is_fast(self, group_size: int, k: int, expected: tuple[int, int]) -> None:
        weight = quantized(5, k, bits=2, group_size=group_size)
        assert block_form(2, group_size, k, takes_two=True) == expected
        assert block_form(3, group_size, k, takes_two=True)[0] == 4
        assert weight.quantized is not None
        codes, scales = store_codes(*weight.quantized.load(), group_size, *expected)
        assert codes.nbytes == -(-k // expected[1]) * expected[1] * 5 * expected[0] // 8
        np.testing.assert_array_equal(dequantize_blocks(codes, scales, expected[0], k), weight.load())

    @pytest.mark.parametrize(
        ("compute", "for_cpu", "bits"), [("int8", True, 2), ("int8", False, 4), ("float32", True, 4)]
    )
    def test_two_bits_for_the_cpu(self, compute: str, for_cpu: bool, bits: int) -> None:
        """Activations of 8 bits are within 2 % of the exact product's range."""
        chosen = quantized(12, 32, bits=2, group_size=32)
        model = make_graph(self.TEXT, self.WEIGHTS)
        next(v for v in model.graph.inputs if v.name == "a").meta[KEY] = chosen.transposed()
        QuantizeWeightsPass(choose_storage("float32", {"compute": compute}), for_cpu=for_cpu)(model)
        product = next(n for n in model.graph if n.op_type == "MatMulNBits")
        assert product.attributes.get_int("bits") == bits
        expected = evaluate(make_graph(self.TEXT, {**self.WEIGHTS, "a": chosen.load().T}), self.IDS)[0]
        got = evaluate(model, self.IDS)[0]
        assert np.abs(got - expected).max() < (0.02 if compute == "int8" else 1e-5) * np.abs(expected).max()

    @pytest.mark.parametrize(("bits", "group_size", "message"), [(4, 24, "multiple of 16"), (9, 32, "got 9 bits")])
    def test_groups_that_no_block_divides(self, bits: int, group_size: int, message: str) -> None:
        with pytest.raises(ExportError, match=message):
            block_form(bits, group_size, 96)

    def test_a_router_that_a_method_has_quantised_is_restored(self) -> None:
        text = """g (float[1, T, 32] x, float[32, 4] r) => (float[1, T, 2] best, int64[1, T, 2] which)
            <int64[1] two = {2}> { l = MatMul (x, r)  best, which = TopK (l, two) }"""
        chosen = quantized(4, 32, group_size=16)
        model = make_graph(text, {"r": self.WEIGHTS["a"][:, :4]})
        model.graph.inputs[1].meta[KEY] = chosen.transposed()
        assert not QuantizeWeightsPass(choose_storage())(model).modified
        x = random_arrays(x=(1, 3, 32))
        expected = np.sort(x["x"] @ chosen.load().T, axis=-1)[..., :1:-1]
        np.testing.assert_allclose(evaluate(model, x)[0], expected, atol=1e-4, rtol=0)


def test_simplify_keeps_values_and_merges_equal_computations() -> None:
    text = """g (float[1, T, 8] x, float[8, 4] w) => (float[1, T, 4] y) <float one = {1}, float zero = {0}> {
        c = Add (one, zero)  x1 = Mul (x, c)  a = MatMul (x1, w)  b = MatMul (x1, w)
        t = Transpose <perm = [0, 2, 1]> (a)  u = Transpose <perm = [0, 2, 1]> (t)  y = Add (u, b) }"""
    types, _ = check_pass(SimplifyPass(), text, random_arrays(w=(8, 4)), X)
    assert types == Types(MatMul=1, Add=1)


class TestUnsqueezeReshape:
    @pytest.mark.parametrize(
        ("sizes", "expected"),
        [("{1, -1, 4}", Types(Reshape=1)), ("{5, 8}", Types(Reshape=1)), ("{0, 5, 8}", Types(Unsqueeze=1, Reshape=1))],
    )
    def test_it_is_one_reshape_unless_a_size_is_copied(self, sizes: str, expected: Types[str]) -> None:
        rank = sizes.count(",") + 1
        text = f"""g (float[5, 8] x) => (float[{", ".join("ABC"[:rank])}] y)
            <int64[1] axis = {{0}}, int64[{rank}] sizes = {sizes}> {{ u = Unsqueeze (x, axis)  y = Reshape (u, sizes) }}"""
        types, _ = check_pass(RewritePass(RULES), text, {}, random_arrays(x=(5, 8)))
        assert types == expected
