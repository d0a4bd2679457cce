"""Tests of FuseBlockLinearPass on small graphs: the cases of its docstring, and equal values before and after."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from enginewright.builders.passes.fuse_block_linear import FuseBlockLinearPass
from enginewright.exporters.weights.panels import pack_panels
from tests.support.ops.op_session import run_graph

pytestmark = pytest.mark.native

TEXT = """<ir_version: 10, opset_import: ["" : 23, "enginewright" : 1]>
g (float[1, T, 64] x, float[1, T, 64] y, float[T, 4, 16] heads, float[64] scale, float[64] offset, int64[N] rows,
   int8[4, 576] w, int8[4, 576] u) => ({outputs})
<int64[2] halves = {{32, 32}}, int64[2] parts = {{16, 48}}, int64[3] flat = {{1, -1, 64}}, int64[2] plain = {{-1, 64}},
 int64[1] front = {{0}}, float[1, T, 64] p, float[1, T, 64] q,
 float[1, N, 64] chosen, float[N, 64] r, float[1, N, 64] z> {{ {body} }}"""
PRODUCT = "enginewright.BlockLinear <bits = 4, block = 32, columns = 64, rows = 64, width = 64, exact = 1>"
NORM = "n = RMSNormalization <axis = -1, epsilon = 0.25> (x, scale)"
SILU = "s = Sigmoid (a)  t = Mul (a, s)"
SUM, GATED = "float[1, T, 64] o", "float[1, T, 32] o"
Types = collections.Counter
FUSED = Types(BlockLinear=1)


def make_model(body: str, outputs: str) -> ir.Model:
    """The model of `body`, in which P stands for a product of 64 columns and rows."""
    text = TEXT.format(body=body.replace("P(", f"{PRODUCT} ("), outputs=outputs)
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def evaluate(model: ir.Model) -> list[np.ndarray]:
    """The model's outputs as it stands."""
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((1, 5, 64)).astype(np.float32) for name in ("x", "y")}
    feeds["heads"] = rng.standard_normal((5, 4, 16)).astype(np.float32)
    for name in ("scale", "offset"):
        feeds[name] = rng.standard_normal(64).astype(np.float32)
    for name in ("w", "u"):
        codes, scales = rng.integers(0, 16, (64, 64)).astype(np.uint8), rng.uniform(0, 0.02, (64, 2)).astype(np.float16)
        feeds[name] = pack_panels(codes, scales, None, 4, 32)
    feeds["rows"] = np.array([4, 1])
    return run_graph(model, feeds)


def check(body: str, outputs: str = SUM) -> tuple[Types[str], list[ir.Node]]:
    """Run the pass, compare values before and after, and return the ops and the products that are left."""
    expected = evaluate(make_model(body, outputs))
    model = make_model(body, outputs)
    names = [value.name for value in model.graph.outputs]
    changed = FuseBlockLinearPass()(model).modified
    ir.passes.Sequential(common.RemoveUnusedNodesPass(), common.TopologicalSortPass())(model)
    types = Types(node.op_type for node in model.graph)
    assert changed == (types != Types(node.op_type for node in make_model(body, outputs).graph))
    assert [value.name for value in model.graph.outputs] == names
    for got, wanted in zip(evaluate(model), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)
    return types, [node for node in model.graph if node.op_type == "BlockLinear"]


@pytest.mark.parametrize("add", ["Add (p, y)", "Add (y, p)"])
def test_a_residual(add: str) -> None:
    types, (node,) = check(f"p = P(x, w)  o = {add}")
    assert types == FUSED and node.inputs[3] is not None and node.inputs[3].name == "y"


def test_a_sum_of_two_products() -> None:
    types, _ = check("p = P(x, w)  q = P(y, u)  o = Add (p, q)")
    assert types == Types(BlockLinear=2)


@pytest.mark.parametrize(
    ("gate", "number"),
    [
        (f"{SILU}  o = Mul (t, b)", 1),
        (f"{SILU}  o = Mul (b, t)", 1),
        ("t = Gelu <approximate = 'tanh'> (a)  o = Mul (t, b)".replace("'", '"'), 2),
        ("t = Gelu (a)  o = Mul (t, b)", 3),
    ],
)
def test_a_gate(gate: str, number: int) -> None:
    types, (node,) = check(f"p = P(x, w, offset)  a, b = Split <axis = -1> (p, halves)  {gate}", GATED)
    assert types == FUSED
    assert (node.attributes.get_int("gate"), node.attributes.get_int("width")) == (number, 32)


def test_a_norm_of_two_products_and_of_gathered_rows() -> None:
    body = f"{NORM}  p = P(n, w)  c = Gather <axis = 1> (n, rows)  o2 = P(c, u)  o = Add (p, y)"
    types, nodes = check(body, f"{SUM}, float[1, N, 64] o2")
    assert types == Types(BlockLinear=2, Gather=1)
    assert all(node.attributes.get_float("epsilon") == 0.25 for node in nodes)


def test_reshapes() -> None:
    types, _ = check("f = Reshape (heads, flat)  p = P(f, w)  o = Add (p, y)")
    assert types == FUSED
    body = "c = Gather <axis = 1> (x, rows)  d = Squeeze (c, front)  e = Reshape (d, flat)  chosen = P(e, w)"
    types, _ = check(
        f"{body}  r = Reshape (chosen, plain)  z = Unsqueeze (r, front)  o = Squeeze (z, front)", "float[N, 64] o"
    )
    assert types == Types(BlockLinear=1, Gather=1, Squeeze=1)


def test_a_layer() -> None:
    body = (
        f"{NORM}  p = P(n, w)  m = Add (x, p)  k = RMSNormalization <axis = -1, epsilon = 0.5> (m, scale)  q = P(k, u)"
    )
    types, nodes = check(f"{body}  o = Add (q, m)", f"{SUM}")
    assert types == Types(BlockLinear=2)
    assert [round(node.attributes.get_float("epsilon") or 0, 2) for node in nodes] == [0.25, 0.5]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("p = P(x, w)  a, b = Split <axis = -1> (p, halves)  s = Sigmoid (b)  t = Mul (a, s)  o = Mul (t, b)", GATED),
        (
            f"p = P(x, w)  a, b = Split <axis = -1> (p, halves)  {SILU}  o = Mul (t, b)  o2 = Neg (b)",
            f"{GATED}, float[1, T, 32] o2",
        ),
        (
            f"p = P(x, w)  a, b = Split <axis = -1> (p, halves)  {SILU}  o = Mul (t, b)  o2 = Neg (s)",
            f"{GATED}, float[1, T, 32] o2",
        ),
        (
            "p = P(x, w)  a, b = Split <axis = -1> (p, parts)  o2 = Neg (a)  o = Neg (b)",
            "float[1, T, 48] o, float[1, T, 16] o2",
        ),
        ("p = P(x, w)  o = Add (p, offset)", SUM),  # no value of the same shape
        ("p = P(x, w)  o = Add (p, p)", SUM),
        ("p = P(x, w)  o = Add (p, y)  o2 = Neg (p)", f"{SUM}, float[1, T, 64] o2"),
        (f"{NORM}  p = P(n, w)  o = Neg (p)  o2 = Neg (n)", f"{SUM}, float[1, T, 64] o2"),
        (f"{NORM}  p = P(y, w, '', n)  o = Neg (p)".replace("''", ""), SUM),  # it is the residual
        (f"{NORM}  c = Gather <axis = 2> (n, rows)  o = Neg (c)", "float[1, T, N] o"),
        ("n = RMSNormalization <axis = 1> (x, y)  p = P(n, w)  o = Neg (p)", SUM),
    ],
)
def test_what_stays(body: str, outputs: str) -> None:
    model = make_model(body, outputs)
    before = [(node.op_type, node.inputs) for node in model.graph]
    assert not FuseBlockLinearPass()(model).modified
    assert [(node.op_type, node.inputs) for node in model.graph] == before


def test_an_output_of_the_graph_keeps_its_name_and_is_never_left_out() -> None:
    types, _ = check(f"{NORM}  p = P(n, w)  m = Add (p, y)  o = Neg (m)", f"{SUM}, float[1, T, 64] m")
    assert types == Types(BlockLinear=1, Neg=1)
    types, _ = check(f"{NORM}  p = P(n, w)  o = Neg (p)", f"{SUM}, float[1, T, 64] n, float[1, T, 64] p")
    assert types == Types(RMSNormalization=1, BlockLinear=1, Neg=1)
