"""Tests of TokenScores' plugin for TensorRT: its types, its outputs' sizes, its attributes and its refusals."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.kernels.device import rounded
from tests.support.ops.tensorrt_host import Output, creators, run_node
from tests.support.ops.token_scores_cases import CASES, Case, check, expected, make_inputs

pytestmark = pytest.mark.emulated
BY_NAME = {case.name: case for case in CASES}


def outputs_of(case: Case, arrays: dict[str, np.ndarray]) -> list[Output]:
    tokens = arrays["tile_table"].shape[3] * 128
    sizes = {"importance": tokens, "redundancy": tokens * case.redundancy}
    return [Output(name, "float32", (len(case.held), case.kv_heads, size)) for name, size in sizes.items()]


def test_its_creator_is_listed() -> None:
    assert any(line.startswith("TokenScores 1 enginewright:") for line in creators().splitlines())


@pytest.mark.parametrize("type", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["lens_per_head", "sinks_1_2", "nothing_redundant", "late_records", "records_k4_v2"])
def test_a_node_runs(name: str, type: str) -> None:
    case = BY_NAME[name]
    arrays = make_inputs(case)
    arrays["ring"] = rounded(arrays["ring"], type)
    found = run_node("emulated", "TokenScores", arrays, case.attributes, type, outputs_of(case, arrays))
    check(case, found, expected(case, arrays))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"window": 12}, "TokenScores: ring: got R = 11, expected at least window = 12"),
        ({"group": 3}, "TokenScores: group: got 3, expected 0"),
        ({"kv_bits": 32}, "TokenScores: tiles: got 20480 bytes a tile, expected those of keys of 64"),
        ({"layer": 2}, "TokenScores: layer: got 2, expected below L = 2"),
        ({"k_bits": 4, "v_bits": 2}, "TokenScores: tiles: got shape"),
    ],
)
def test_what_does_not_fit_is_refused(attributes: dict[str, int], message: str) -> None:
    case = BY_NAME["redundant"]
    arrays = make_inputs(case)
    with pytest.raises(ValueError, match=message):
        run_node(
            "emulated", "TokenScores", arrays, {**case.attributes, **attributes}, "float16", outputs_of(case, arrays)
        )
