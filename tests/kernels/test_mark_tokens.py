"""Tests of MarkTokens on a device against its oracle."""

from __future__ import annotations

from typing import Any

import pytest

from enginewright.plugins.libraries.cuda_calls import CallStructure, structure_of
from enginewright.plugins.ops.mark_tokens import MARK_TOKENS, MARK_TOKENS_CALL
from tests.support.kernels.device import TYPES, Buffer, Device, download, rounded, run, to_bits
from tests.support.ops.mark_tokens_cases import CASES, Arrays, Case, check, expected, make_inputs

MarkTokens = structure_of(MARK_TOKENS_CALL)
ON_A_GPU = [case for case in CASES if case.kv_bits == 16]
BY_NAME = {case.name: case for case in CASES}
DEFAULTS = {a.name: a.default for a in MARK_TOKENS.attributes if a.default is not None}


def call_of(case: Case, arrays: Arrays, type: str, device: Device) -> tuple[CallStructure, dict[str, Buffer]]:
    """The call, and the buffers that it points to."""
    given = {**arrays, "query": to_bits(arrays["query"], type)}
    given |= {name: arrays[name][case.layer] for name in ("kv_lens", "tile_table")}
    buffers = {"table" if name == "tile_table" else name: device.upload(array) for name, array in given.items()}
    attributes = {name: value for name, value in {**DEFAULTS, **case.attributes}.items() if name != "layer"}
    tokens, query_heads, head_dim = arrays["query"].shape
    call = MarkTokens(
        **{name: buffer.address for name, buffer in buffers.items()},
        **attributes,
        tokens=tokens,
        rows=len(case.rows),
        query_heads=query_heads,
        head_dim=head_dim,
        tile_count=arrays["tiles"].shape[0],
        tile_bytes=arrays["tiles"].shape[1],
        table_heads=arrays["kv_lens"].shape[2],
        table_width=arrays["tile_table"].shape[3],
        channels=case.channels,
        type=TYPES[type],
    )
    return call, buffers


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", ON_A_GPU, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, type: str, device: Device) -> None:
    arrays = make_inputs(case)
    arrays["query"] = rounded(arrays["query"], type)
    call, buffers = call_of(case, arrays, type, device)
    run(device, call)
    check(case, download(device, buffers["marks"]), expected(case, arrays))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kv_bits", 32, "MarkTokens: kv_bits: got 32, expected 16: caches on a GPU hold halves"),
        ("kind", 3, "MarkTokens: kind: got 3, expected 0 to 2"),
        ("channels", 2, "MarkTokens: channels: got 2, expected 1, because kind = 0"),
        ("alpha", 0.0, r"MarkTokens: alpha: got 0\.0+, expected above 0, at most 1"),
        ("rows", 0, "MarkTokens: rows: got 0, expected 1 or more, because there are tokens"),
        ("tokens", -1, "MarkTokens: tokens: got -1, expected 0 to"),
        ("query_heads", 3, "MarkTokens: query_heads: got 3, expected a multiple of the 2 KV heads"),
        ("kind", 2, "MarkTokens: values: got a null pointer, expected device memory"),
        ("marks", None, "MarkTokens: marks: got a null pointer, expected device memory"),
        ("position_ids", None, "MarkTokens: position_ids: got a null pointer"),
    ],
)
def test_a_wrong_call_is_refused(field: str, value: Any, message: str, device: Device) -> None:
    case = BY_NAME["decode_0"]
    call, _kept = call_of(case, make_inputs(case), "float16", device)
    setattr(call, field, value)
    with pytest.raises(ValueError, match=message):
        run(device, call)
