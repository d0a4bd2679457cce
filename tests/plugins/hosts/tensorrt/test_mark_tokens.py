"""Tests of MarkTokens' plugin for TensorRT: its types, its alias, its attributes and its refusals."""

from __future__ import annotations

import pytest

from tests.support.kernels.device import rounded
from tests.support.ops.mark_tokens_cases import CASES, check, expected, make_inputs
from tests.support.ops.tensorrt_host import Output, creators, run_node

pytestmark = pytest.mark.emulated
BY_NAME = {case.name: case for case in CASES}


def test_its_creator_is_listed() -> None:
    assert any(line.startswith("MarkTokens 1 enginewright:") for line in creators().splitlines())


@pytest.mark.parametrize("type", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["mixed_0", "sinks_1", "mixed_2", "sinks_2"])
def test_a_node_updates_the_marks(name: str, type: str) -> None:
    case = BY_NAME[name]
    arrays = make_inputs(case)
    arrays["query"] = rounded(arrays["query"], type)
    outputs = [Output("marks_out", "float32", arrays["marks"].shape, alias="marks")]
    (got,) = run_node("emulated", "MarkTokens", arrays, case.attributes, type, outputs)
    check(case, got, expected(case, arrays))


def test_marks_of_another_kind_are_refused() -> None:
    case = BY_NAME["mixed_0"]
    arrays = make_inputs(case)
    outputs = [Output("marks_out", "float32", arrays["marks"].shape, alias="marks")]
    with pytest.raises(ValueError, match=r"MarkTokens: marks: got shape \[\d+, 1, 128\], expected \[N, C, 128\]"):
        run_node("emulated", "MarkTokens", arrays, {**case.attributes, "kind": 1}, "float16", outputs)
