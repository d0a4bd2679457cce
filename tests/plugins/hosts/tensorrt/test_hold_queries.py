"""Tests of HoldQueries' plugin for TensorRT: its types, its alias and its refusals."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.plugins.ops.hold_queries import HOLD_QUERIES
from tests.support.kernels.device import from_bits, rounded
from tests.support.ops.hold_queries_cases import CASES, make_inputs
from tests.support.ops.tensorrt_host import Output, creators, run_node

pytestmark = pytest.mark.emulated


def test_its_creator_is_listed() -> None:
    assert any(line.startswith("HoldQueries 1 enginewright:") for line in creators().splitlines())


@pytest.mark.parametrize("type", ["float16", "bfloat16"])
def test_a_node_updates_the_ring(type: str) -> None:
    arrays = make_inputs(CASES[3])
    arrays |= {name: rounded(arrays[name], type) for name in ("query", "ring")}
    outputs = [Output("ring_out", type, arrays["ring"].shape, alias="ring")]
    (got,) = run_node("emulated", "HoldQueries", arrays, {}, type, outputs)
    np.testing.assert_array_equal(from_bits(got, type), HOLD_QUERIES.load_oracle()(**arrays))


def test_a_wrong_shape_is_refused() -> None:
    arrays = make_inputs(CASES[3])
    arrays["ring"] = arrays["ring"][:, :2]
    outputs = [Output("ring_out", "float16", arrays["ring"].shape, alias="ring")]
    with pytest.raises(ValueError, match=r"HoldQueries: ring: got shape \[6, 2, 11, 33\], expected \[S, Hq, R, D\]"):
        run_node("emulated", "HoldQueries", arrays, {}, "float16", outputs)
