"""Tests of AddLora's plugin for TensorRT: its types, its variadic input, its attribute and its refusals."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.kernels.device import rounded
from tests.support.ops.add_lora_cases import CASES, expected, make_inputs
from tests.support.ops.tensorrt_host import Output, creators, run_node

pytestmark = pytest.mark.emulated


def test_its_creator_is_listed() -> None:
    assert any(line.startswith("AddLora 1 enginewright:") for line in creators().splitlines())


@pytest.mark.parametrize("type", ["float16", "bfloat16"])
def test_a_node_runs(type: str) -> None:
    case = CASES[5]
    arrays = make_inputs(case)
    for name in ("base", "x"):
        arrays[name] = rounded(arrays[name], type)
    (got,) = run_node("emulated", "AddLora", arrays, case.attributes, type, [Output("sum", type, arrays["base"].shape)])
    step = 2.0**-10 if type == "float16" else 2.0**-7  # the result is rounded once
    np.testing.assert_allclose(got, expected(case, arrays), rtol=step, atol=3e-5)


def test_a_layer_that_is_not_there_is_refused() -> None:
    arrays = make_inputs(CASES[5])
    outputs = [Output("sum", "float16", arrays["base"].shape)]
    with pytest.raises(ValueError, match="AddLora: layer: got 1, expected less than L = 1"):
        run_node("emulated", "AddLora", arrays, {"layer": 1}, "float16", outputs)
