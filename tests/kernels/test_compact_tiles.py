"""Tests of CompactTiles on a device against its oracle."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.plugins.libraries.cuda_calls import CallStructure, structure_of
from enginewright.plugins.ops.compact_tiles import COMPACT_TILES_CALL
from tests.support.kernels.device import Buffer, Device, download, run
from tests.support.ops.compact_tiles_cases import CASES, Arrays, Case, expected, make_inputs

CompactTiles = structure_of(COMPACT_TILES_CALL)


def call_of(case: Case, arrays: Arrays, device: Device) -> tuple[CallStructure, dict[str, Buffer]]:
    """The call, and the buffers that it points to."""
    buffers = {name: device.upload(array) for name, array in arrays.items()}
    addresses = {name: buffer.address for name, buffer in buffers.items()}
    sizes = {"count": case.moves, "tile_count": case.tiles, "channels": case.channels or 0}
    return CompactTiles(**addresses, **sizes, **{"kv_bits": 16, **case.attributes}), buffers


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, device: Device) -> None:
    arrays = make_inputs(case)
    call, buffers = call_of(case, arrays, device)
    run(device, call)
    names = [name for name in ("tiles", "marks") if name in buffers]
    for name, wanted in zip(names, expected(case, arrays), strict=True):
        np.testing.assert_array_equal(download(device, buffers[name]), wanted)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", -1, "CompactTiles: count: got -1, expected 0 to"),
        ("head_dim", 0, "CompactTiles: head_dim: got 0, expected 1 to 65536"),
        ("value_dim", 2**40, "CompactTiles: value_dim: got 1099511627776, expected 1 to 65536"),
        ("kv_bits", 8, "CompactTiles: kv_bits: got 8, expected 16 or 32"),
        ("tiles", None, "CompactTiles: tiles: got a null pointer, expected device memory"),
        ("marks", None, "CompactTiles: marks: got a null pointer, expected device memory"),
    ],
)
def test_a_wrong_call_is_refused(field: str, value: int | None, message: str, device: Device) -> None:
    case = CASES[6]
    call, _kept = call_of(case, make_inputs(case), device)
    setattr(call, field, value)
    with pytest.raises(ValueError, match=message):
        run(device, call)
