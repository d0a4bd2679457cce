"""Tests of SimplifiedNormsPass on small graphs: the cases of its docstring, and equal values before and after."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from enginewright.builders.onnxruntime.simplified_norms import SimplifiedNormsPass
from tests.support.exporters.small_graphs import evaluate, make_graph, random_arrays

Types = collections.Counter


def check(body: str) -> Types[str]:
    """Run the pass and compare values before and after; return the node types."""
    text = f"""g (float[1, T, 8] x, float[1, T, 8] y, float[8] w, float[1, 8] w2) => (float[1, T, 8] z, float[1, T, 8] s)
        {{ {body} }}"""
    feeds = random_arrays(x=(1, 5, 8), y=(1, 5, 8), w=(8,), w2=(1, 8))
    model = make_graph(text)
    SimplifiedNormsPass()(model)
    for got, wanted in zip(evaluate(model, feeds), evaluate(make_graph(text), feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    return Types(node.op_type for node in model.graph)


def test_a_norm_alone() -> None:
    body = "s = Neg (y)  z = RMSNormalization <axis = -1, epsilon = 0.1> (x, w)"
    assert check(body) == Types(Neg=1, SimplifiedLayerNormalization=1)


def test_a_norm_of_a_sum() -> None:
    body = "a = Add (x, y)  z = RMSNormalization <axis = -1, epsilon = 0.1> (a, w)  s = Neg (a)"
    assert check(body) == Types(Neg=1, SkipSimplifiedLayerNormalization=1)


@pytest.mark.parametrize("norm", ["<axis = 1> (x, w2)", "<axis = 2> (x, w)"])
def test_other_norms_stay(norm: str) -> None:
    assert check(f"s = Neg (y)  z = RMSNormalization {norm}") == Types(Neg=1, RMSNormalization=1)
