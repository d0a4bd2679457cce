"""Tests of AddLora through ONNX Runtime against its oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from enginewright.plugins.libraries.locate import ort_library
from enginewright.plugins.ops.add_lora import ADD_LORA
from enginewright.plugins.ops.op import DOMAIN
from tests.support.ops.add_lora_cases import CASES, Case, expected, make_inputs
from tests.support.ops.op_session import run_op

pytestmark = pytest.mark.native


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, isa: str) -> None:
    arrays = make_inputs(case)
    (got,) = run_op("AddLora", arrays, **case.attributes)
    # sums of up to 200 products in another order
    np.testing.assert_allclose(got, expected(case, arrays), atol=3e-5, rtol=1e-5)
    np.testing.assert_array_equal(got[0, case.without], arrays["base"][0, case.without])


@pytest.mark.parametrize("case", [CASES[5], CASES[7]], ids=lambda case: case.name)
def test_a_token_is_the_same_in_any_company(case: Case, isa: str) -> None:
    arrays = make_inputs(case)
    (together,) = run_op("AddLora", arrays, **case.attributes)
    for token in (0, 3, len(case.index) - 1):
        alone = {name: arrays[name][:, token : token + 1] for name in ("base", "x")}
        alone |= {name: arrays[name][token : token + 1] for name in ("index", "scale")}
        (got,) = run_op("AddLora", {**arrays, **alone}, threads=1, **case.attributes)
        np.testing.assert_array_equal(got[0, 0], together[0, token])


@pytest.mark.parametrize("case", [CASES[4], CASES[6]], ids=lambda case: case.name)
def test_the_sum_may_take_the_place_of_the_base(case: Case) -> None:
    """Between two other nodes, where ONNX Runtime reuses the memory, the result is the same."""
    arrays = make_inputs(case)
    (wanted,) = run_op("AddLora", arrays, **case.attributes)
    session = open_between_nodes(case)
    (got,) = session.run(None, arrays)
    np.testing.assert_array_equal(got, -wanted)


def open_between_nodes(case: Case) -> ort.InferenceSession:
    """Base -> Neg -> Neg -> AddLora -> Neg."""
    arrays = make_inputs(case)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in arrays.items()
    ]
    names = list(arrays)
    nodes = [
        helper.make_node("Neg", ["base"], ["negative"]),
        helper.make_node("Neg", ["negative"], ["same"]),
        helper.make_node("AddLora", ["same", *names[1:]], ["sum"], domain=DOMAIN, **case.attributes),
        helper.make_node("Neg", ["sum"], ["result"]),
    ]
    shape = arrays["base"].shape
    between = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("negative", "same", "sum")]
    output = helper.make_tensor_value_info("result", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "g", inputs, [output], value_info=between)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, ADD_LORA.version)]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.register_custom_ops_library(str(ort_library()))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("changes", "attributes", "message"),
    [
        ({"x": (1, 6, 33)}, {}, r"x: got shape \[1, 6, 33\]"),
        ({"index": (6,)}, {}, "index: got"),
        ({"scale": (8,)}, {}, "scale: got"),
        ({"factors.0": (4, 2, 3, 34)}, {}, r"factors\[0\]: got shape \[4, 2, 3, 34\]"),
        ({"factors.3": (4, 2, 4, 5)}, {}, r"factors\[3\]: got shape \[4, 2, 4, 5\]"),
        ({"factors.5": (4, 2, 3, 7)}, {}, "factors: got 29 outputs, expected those of base, O = 28"),
        ({"factors.5": None}, {}, "factors: got 5 tensors, expected a and b of each segment"),
        ({}, {"layer": 2}, "layer: got 2, expected less than L = 2"),
        ({}, {"layer": -1}, "layer: got -1"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], attributes: dict[str, int], message: str) -> None:
    case = CASES[4]
    arrays = make_inputs(case)
    for name, shape in changes.items():
        given = arrays.pop(name)
        if shape is not None:
            arrays[name] = np.zeros(shape, given.dtype)
    arrays = {name: arrays[name] for name in make_inputs(case) if name in arrays}
    with pytest.raises(Exception, match=message):
        run_op("AddLora", arrays, **{**case.attributes, **attributes})
