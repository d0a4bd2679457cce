"""Tests of CompactTiles' plugin for TensorRT: its optional input and output, its attributes and its refusals."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.ops.compact_tiles_cases import CASES, Case, expected, make_inputs
from tests.support.ops.tensorrt_host import Output, creators, run_node

pytestmark = pytest.mark.emulated


def outputs_of(arrays: dict[str, np.ndarray]) -> list[Output]:
    types = {"tiles": "int8", "marks": "float32"}
    return [Output(f"{n}_out", t, arrays[n].shape, alias=n) for n, t in types.items() if n in arrays]


def test_its_creator_is_listed() -> None:
    assert any(line.startswith("CompactTiles 1 enginewright:") for line in creators().splitlines())


@pytest.mark.parametrize("case", CASES[3:7], ids=lambda case: case.name)
def test_a_node_moves_tokens(case: Case) -> None:
    arrays = make_inputs(case)
    found = run_node("emulated", "CompactTiles", arrays, case.attributes, "float16", outputs_of(arrays))
    for got, wanted in zip(found, expected(case, arrays), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_wrong_attributes_are_refused() -> None:
    arrays, attributes = make_inputs(CASES[3]), {"head_dim": 0, "value_dim": 64}
    with pytest.raises(ValueError, match="CompactTiles: head_dim: got 0, expected 1 to 65536"):
        run_node("emulated", "CompactTiles", arrays, attributes, "float16", outputs_of(arrays))
    attributes = {"head_dim": 64, "value_dim": 65}
    with pytest.raises(ValueError, match=r"CompactTiles: tiles: got shape \[12, 32768\], expected \[N, tile_bytes\]"):
        run_node("emulated", "CompactTiles", arrays, attributes, "float16", outputs_of(arrays))
