"""Tests of FuseGreedyLinearPass on small graphs: the cases of its docstring, and equal values before and after."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from enginewright.builders.passes.fuse_greedy_linear import FuseGreedyLinearPass
from enginewright.exporters.weights.panels import pack_panels
from enginewright.runtime.artifact.decoder_graph import LOGITS_WANTED
from tests.support.ops.op_session import run_graph

pytestmark = pytest.mark.native

TEXT = """<ir_version: 10, opset_import: ["" : 23, "enginewright" : 1]>
g (float[1, N, 64] x, float[64] scale, float[1, N, 64] y, int8[4, 576] w)
    => (float[N, 64] logits, int64[N] greedy_tokens{outputs})
<int64[1] front = {{0}}, float[1, N, 64] p> {{
    p = enginewright.BlockLinear <bits = 4, block = 32, columns = 64, rows = 64, width = 64, epsilon = 0.25> (x, w, {more})
    {body}  greedy_tokens = enginewright.GreedySample (logits) }}"""
SQUEEZE = "logits = Squeeze (p, front)"


def make_model(body: str = SQUEEZE, more: str = ", , scale", outputs: str = "") -> ir.Model:
    """The model of `body`, from the product to the logits; more: inputs of the product from the bias on."""
    text = TEXT.format(body=body, more=more, outputs=outputs)
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def evaluate(model: ir.Model, **given: np.ndarray) -> list[np.ndarray]:
    """The model's outputs as it stands."""
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(0, 16, (64, 64)).astype(np.uint8), rng.uniform(0, 0.02, (64, 2)).astype(np.float16)
    feeds = {
        "x": rng.standard_normal((1, 3, 64)).astype(np.float32),
        "y": rng.standard_normal((1, 3, 64)).astype(np.float32),
        "scale": rng.standard_normal(64).astype(np.float32),
        "w": pack_panels(codes, scales, None, 4, 32),
        **given,
    }
    return run_graph(model, feeds)


@pytest.mark.parametrize("more", [", , scale", "scale, , scale", ""])
def test_product_and_choice_become_one_node(more: str) -> None:
    expected = evaluate(make_model(more=more))
    model = make_model(more=more)
    ir.passes.Sequential(FuseGreedyLinearPass(), common.RemoveUnusedNodesPass())(model)
    assert [node.op_type for node in model.graph] == ["GreedyLinear"]
    for got, wanted in zip(evaluate(model), expected, strict=True):  # logits are written where nobody says anything
        np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(evaluate(model, **{LOGITS_WANTED: np.zeros(1, np.int64)})[1], expected[1])


@pytest.mark.parametrize(
    ("body", "more", "outputs"),
    [
        ("s = Squeeze (p, front)  logits = Tanh (s)", "", ""),
        (f"{SQUEEZE}  o = Neg (logits)", "", ", float[N, 64] o"),
        (f"{SQUEEZE}  o = Neg (p)", "", ", float[1, N, 64] o"),
        (SQUEEZE, ", y", ""),  # with a residual
    ],
)
def test_what_stays(body: str, more: str, outputs: str) -> None:
    assert not FuseGreedyLinearPass()(make_model(body, more, outputs)).modified
