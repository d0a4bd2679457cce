"""Tests of HoldQueries on a device against its oracle."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.plugins.libraries.cuda_calls import CallStructure, structure_of
from enginewright.plugins.ops.hold_queries import HOLD_QUERIES, HOLD_QUERIES_CALL
from tests.support.kernels.device import TYPES, Buffer, Device, download, from_bits, rounded, run, to_bits
from tests.support.ops.hold_queries_cases import CASES, Case, make_inputs

HoldQueries = structure_of(HOLD_QUERIES_CALL)
ACTIVATIONS = ("query", "ring")


def call_of(arrays: dict[str, np.ndarray], type: str, device: Device) -> tuple[CallStructure, dict[str, Buffer]]:
    """The call, and the buffers that it points to."""
    buffers = {
        name: device.upload(to_bits(array, type) if name in ACTIVATIONS else array) for name, array in arrays.items()
    }
    tokens, heads, dim = arrays["query"].shape
    slot_count, _, entries, _ = arrays["ring"].shape
    sizes = {"tokens": tokens, "heads": heads, "dim": dim, "slot_count": slot_count, "entries": entries}
    addresses = {name: buffer.address for name, buffer in buffers.items()}
    return HoldQueries(**addresses, **sizes, rows=len(arrays["slots"]), type=TYPES[type]), buffers


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, type: str, device: Device) -> None:
    arrays = make_inputs(case)
    arrays |= {name: rounded(arrays[name], type) for name in ACTIVATIONS}
    call, buffers = call_of(arrays, type, device)
    run(device, call)
    found = from_bits(download(device, buffers["ring"]), type)
    np.testing.assert_array_equal(found, HOLD_QUERIES.load_oracle()(**arrays))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", -1, "HoldQueries: tokens: got -1, expected 0 to"),
        ("entries", 0, "HoldQueries: entries: got 0, expected 1 to"),
        ("rows", 0, "HoldQueries: rows: got 0, expected 1 to"),
        ("heads", 2**40, "HoldQueries: heads: got 1099511627776, expected 0 to"),
        ("type", 2, r"HoldQueries: type: got 2, expected 0 \(half\) or 1 \(bfloat16\)"),
        ("ring", None, "HoldQueries: ring: got a null pointer, expected device memory"),
        ("position_ids", None, "HoldQueries: position_ids: got a null pointer"),
    ],
)
def test_a_wrong_call_is_refused(field: str, value: int | None, message: str, device: Device) -> None:
    call, _kept = call_of(make_inputs(CASES[0]), "float16", device)
    setattr(call, field, value)
    with pytest.raises(ValueError, match=message):
        run(device, call)
