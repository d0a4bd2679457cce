"""Tests of SplitQkvPass on small graphs: the cases of its docstring, and equal values before and after."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from enginewright.builders.passes.fuse_split_qkv import SplitQkvPass
from enginewright.plugins.ops.tiles import tile_bytes
from tests.support.ops.op_session import run_graph

pytestmark = pytest.mark.native

HEADER = '<ir_version: 10, opset_import: ["" : 23, "enginewright" : 1]>\n'
TOKENS, QUERY_HEADS, KV_HEADS, DIM = 5, 4, 2, 8
ROTATE = "RotaryEmbedding <num_heads = {heads}{more}> ({x}, {cos}, {sin})"
NORM = "RMSNormalization <axis = -1, epsilon = {epsilon}> ({x}, {scale})"
ATTEND = """o, tiles_out = enginewright.PagedAttention <layer = 0, scale = 0.35> (
    {q}, {k}, {v}, tiles, query_starts, kv_lens, tile_table)"""
SPLIT = "qs, ks, vs = Split <axis = -1> (packed, sizes)"
HEADS = "{out} = Reshape ({x}, {heads})"
FEEDS = {
    "tiles": np.zeros((KV_HEADS, tile_bytes(DIM, DIM, 16)), np.int8),
    "query_starts": np.array([0, TOKENS], np.int32),
    "kv_lens": np.zeros((1, 1, KV_HEADS), np.int32),
    "tile_table": np.arange(KV_HEADS, dtype=np.int32).reshape(1, 1, KV_HEADS, 1),
}
CONSTANTS = "<int64[3] sizes = {32, 16, 16}, int64[3] q3 = {-1, 4, 8}, int64[3] k3 = {-1, 2, 8}>"
TO_HEADS = "q = Reshape (qr, q3)  k = Reshape (kr, k3)  v = Reshape (vs, k3)"
Types = collections.Counter


def rotation(x: str, heads: int, cos: str = "cos", sin: str = "sin", more: str = "") -> str:
    """A RotaryEmbedding of tokens-first data."""
    return ROTATE.format(x=x, heads=heads, cos=cos, sin=sin, more=more)


def norm(x: str, scale: str, epsilon: float = 1e-5) -> str:
    """A norm over the last axis."""
    return NORM.format(x=x, scale=scale, epsilon=epsilon)


ROTATED = f"{SPLIT}  qr = {rotation('qs', 4)}  kr = {rotation('ks', 2)}  {TO_HEADS}"
NORMALISED = f"""{SPLIT}  q4 = Reshape (qs, q4s)  k4 = Reshape (ks, k4s)
    qn = {norm("q4", "a")}  kn = {norm("k4", "b")}  qf = Reshape (qn, flat)  kf = Reshape (kn, flat)"""
MORE = "int64[4] q4s = {1, -1, 4, 8}, int64[4] k4s = {1, -1, 2, 8}, int64[3] flat = {1, 5, -1}"


def make_model(body: str, outputs: str = "", value: str = "v") -> ir.Model:
    """The model of `body`, from a packed projection to the operands of attention."""
    text = f"""g (float[1, T, 64] packed, float[1, T, R] cos, float[1, T, R] sin, float[8] a, float[8] b,
            float[T, 2, 8] earlier, int8[N, Z] tiles, int32[B1] query_starts, int32[L, B, H] kv_lens,
            int32[L, B, H, M] tile_table)
        => (float[T, 4, 8] o{outputs}) {CONSTANTS[:-1]}, {MORE}> {{ {body}  {ATTEND.format(q="q", k="k", v=value)} }}"""
    model = onnx.parser.parse_model(HEADER + text)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def check(body: str, half: int = 4, outputs: str = "", value: str = "v") -> tuple[Types[str], ir.Model]:
    """Run the pass, compare values before and after, and return what is left."""
    rng = np.random.default_rng(0)
    angles = rng.uniform(-3, 3, (1, TOKENS, half))
    feeds = {
        **FEEDS,
        "packed": rng.standard_normal((1, TOKENS, 64)).astype(np.float32),
        "earlier": rng.standard_normal((TOKENS, 2, 8)).astype(np.float32),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "a": rng.standard_normal(8).astype(np.float32),
        "b": rng.standard_normal(8).astype(np.float32),
    }
    expected = run_graph(make_model(body, outputs, value), feeds)
    model = make_model(body, outputs, value)
    result = ir.passes.Sequential(SplitQkvPass(), common.RemoveUnusedNodesPass())(model)
    types = Types(node.op_type for node in model.graph)
    assert SplitQkvPass()(make_model(body, outputs, value)).modified == ("SplitQkv" in types), result
    for got, wanted in zip(run_graph(model, feeds), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-3)  # a half cache lies between
    return types, model


FUSED = Types(SplitQkv=1, PagedAttention=1)


def test_rotated() -> None:
    assert check(ROTATED)[0] == FUSED


def test_partially_rotated() -> None:
    more = ", rotary_embedding_dim = 6"
    body = ROTATED.replace("num_heads = 4", f"num_heads = 4{more}").replace("num_heads = 2", f"num_heads = 2{more}")
    assert check(body, half=3)[0] == FUSED


def test_neither_rotated_nor_normalised() -> None:
    assert check(f"{SPLIT}  q = Reshape (qs, q3)  k = Reshape (ks, k3)  v = Reshape (vs, k3)")[0] == FUSED


def test_mixed_over_depth() -> None:
    """DepthMix stands between, and later ones read key and value once more."""
    mix = "enginewright.DepthMix <scale = 0.35>"
    body = f"{ROTATED}  m = {mix} (q, k, v, earlier, earlier)  later = {mix} (q, m, m, earlier, v, k, m)"
    types, _ = check(body, outputs=", float[T, 2, 8] later", value="m")
    assert types == FUSED + Types(DepthMix=2)


def test_normalised_then_rotated() -> None:
    body = f"{NORMALISED}  qr = {rotation('qf', 4)}  kr = {rotation('kf', 2)}  {TO_HEADS}"
    types, model = check(body)
    assert types == FUSED
    (node,) = [node for node in model.graph if node.op_type == "SplitQkv"]
    assert node.attributes.get_float("epsilon") == pytest.approx(1e-5)
    assert check(body.replace("epsilon = 1e-05", "epsilon = 0.25"))[0] == FUSED


@pytest.mark.parametrize(
    "body",
    [
        ROTATED.replace("(ks, cos, sin)", "(ks, sin, cos)"),  # other angles
        ROTATED.replace(f"kr = {rotation('ks', 2)}", "").replace("(kr, k3)", "(ks, k3)"),  # rotated alone
        ROTATED.replace("v = Reshape (vs", f"vr = {rotation('vs', 2)}  v = Reshape (vr"),  # the value rotated too
        ROTATED.replace("num_heads = 2", "num_heads = 2, interleaved = 1"),
        ROTATED.replace("qs, ks, vs = Split", "qs, vs, ks = Split"),  # another order
        ROTATED.replace("v = Reshape (vs", "vn = Neg (vs)  v = Reshape (vn"),  # another node between
        f"{NORMALISED}  qr = {rotation('qf', 4)}  kr = {rotation('kf', 2)}  {TO_HEADS}".replace("1e-05", "0.5", 1),
        f"{NORMALISED}  qr = {rotation('qs', 4)}  kr = {rotation('kf', 2)}  {TO_HEADS}",  # normalised alone
        f"""{SPLIT}  r = {rotation("qs", 4)}  q4 = Reshape (r, q4s)  qr = {norm("q4", "a")}  rk = {rotation("ks", 2)}
            k4 = Reshape (rk, k4s)  kr = {norm("k4", "b")}  {TO_HEADS}""",  # normalised after the rotation
        f"""{SPLIT}  wa = Concat <axis = 0> (a, a, a, a)  wb = Concat <axis = 0> (b, b)  qn = {norm("qs", "wa")}
            kn = {norm("ks", "wb")}  qr = {rotation("qn", 4)}  kr = {rotation("kn", 2)}  {TO_HEADS}""",  # over all heads
        "s = Neg (packed)  qs, ks, x = Split <axis = -1> (packed, sizes)  x1, x2, vs = Split <axis = -1> (s, sizes)"
        + ROTATED.removeprefix(SPLIT),  # two splits
    ],
)
def test_anything_else_stays(body: str) -> None:
    types, _ = check(body)
    assert "SplitQkv" not in types and types["Split"] >= 1


def test_a_value_with_other_readers_stays() -> None:
    types, _ = check(f"{ROTATED}  other = Neg (kr)", outputs=", float[1, T, 16] other")
    assert "SplitQkv" not in types
    types, _ = check(ROTATED, outputs=", float[1, T, 16] vs")
    assert "SplitQkv" not in types
