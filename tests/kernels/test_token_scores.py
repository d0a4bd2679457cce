"""Tests of TokenScores on a device against its oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from enginewright.plugins.libraries.cuda_calls import CallStructure, structure_of
from enginewright.plugins.ops.token_scores import TOKEN_SCORES, TOKEN_SCORES_CALL
from tests.support.kernels.device import TYPES, Buffer, Device, download, rounded, run, to_bits
from tests.support.ops.token_scores_cases import CASES, Case, check, expected, make_inputs

TokenScores = structure_of(TOKEN_SCORES_CALL)
ON_A_GPU = [case for case in CASES if case.kv_bits == 16]
BY_NAME = {case.name: case for case in CASES}
DEFAULTS = {a.name: a.default for a in TOKEN_SCORES.attributes if a.default is not None}


def call_of(
    case: Case, arrays: dict[str, np.ndarray], type: str, device: Device
) -> tuple[CallStructure, list[Buffer], list[Buffer]]:
    """The call, its outputs' buffers, and those of its inputs."""
    given = {**arrays, "ring": to_bits(arrays["ring"], type)}
    given |= {name: arrays[name][case.layer] for name in ("kv_lens", "tile_table")}
    if case.k_bits:
        given["encoded_lens"] = arrays["encoded_lens"][0, case.layer]
    fields = {"tile_table": "table", "encoded_lens": "encoded"}
    buffers = {fields.get(name, name): device.upload(array) for name, array in given.items()}
    attributes: dict[str, Any] = {**DEFAULTS, **case.attributes}
    attributes = {name: value for name, value in attributes.items() if name not in ("layer", "redundancy")}
    shape = (len(case.held), case.kv_heads, arrays["tile_table"].shape[3] * 128)
    outputs = {"importance": device.upload(np.full(shape, np.nan, np.float32))}
    if case.redundancy:
        outputs["redundancy"] = device.upload(np.full(shape, np.nan, np.float32))
    slot_count, query_heads, entries, head_dim = arrays["ring"].shape
    call = TokenScores(
        **{name: buffer.address for name, buffer in (buffers | outputs).items()},
        **attributes,
        rows=len(case.held),
        query_heads=query_heads,
        head_dim=head_dim,
        slot_count=slot_count,
        entries=entries,
        tile_count=arrays["tiles"].shape[0],
        tile_bytes=arrays["tiles"].shape[1],
        table_heads=arrays["kv_lens"].shape[2],
        table_width=arrays["tile_table"].shape[3],
        exact_tiles=case.exact_tiles if case.k_bits else 0,
        type=TYPES[type],
    )
    return call, list(outputs.values()), list(buffers.values())


def scores(case: Case, arrays: dict[str, np.ndarray], type: str, device: Device) -> list[np.ndarray]:
    """Both outputs."""
    call, outputs, _kept = call_of(case, arrays, type, device)
    run(device, call)
    found = [download(device, buffer) for buffer in outputs]
    empty = np.zeros((len(case.held), case.kv_heads, 0), np.float32)
    return found if case.redundancy else [*found, empty]


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", ON_A_GPU, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, type: str, device: Device) -> None:
    arrays = make_inputs(case)
    arrays["ring"] = rounded(arrays["ring"], type)
    check(case, scores(case, arrays, type, device), expected(case, arrays))


@pytest.mark.parametrize("name", ["redundant", "sinks_1_1"])
def test_twice_is_bitwise_the_same(name: str, device: Device) -> None:
    arrays = make_inputs(BY_NAME[name])
    first, second = (scores(BY_NAME[name], arrays, "float16", device) for _ in range(2))
    for mine, its in zip(first, second, strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("k_bits", 3, r"TokenScores: k_bits: got 3, expected 0 \(no records\), 2, 4 or 8"),
        ("v_bits", 0, "TokenScores: v_bits: got 0, expected 2, 4 or 8"),
        ("head_dim", 48, "TokenScores: head_dim: got 48, expected a power of two from 16 to 512"),
        ("tile_bytes", 7295, "TokenScores: tile_bytes: got 7295, expected 7296, those of a record"),
        ("exact_tiles", 1, "TokenScores: exact_tiles: got 1, expected 2 to"),
        ("exact", None, "TokenScores: exact: got a null pointer"),
        ("encoded", None, "TokenScores: encoded: got a null pointer"),
    ],
)
def test_a_wrong_call_over_records_is_refused(field: str, value: Any, message: str, device: Device) -> None:
    case = BY_NAME["records_k4_v2"]
    call, _outputs, _kept = call_of(case, make_inputs(case), "float16", device)
    setattr(call, field, value)
    with pytest.raises(ValueError, match=message):
        run(device, call)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kv_bits", 32, "TokenScores: kv_bits: got 32, expected 16: caches on a GPU hold halves"),
        ("query_heads", 3, "TokenScores: query_heads: got 3, expected a multiple of the 2 KV heads"),
        ("window", 12, "TokenScores: window: got 12, expected 1 to 11"),
        ("scope", 2, "TokenScores: scope: got 2, expected 0 to 1"),
        ("group", -1, "TokenScores: group: got -1, expected 0 to 2"),
        ("threshold", 1.5, r"TokenScores: threshold: got 1\.50*, expected 0 to 1"),
        ("softcap", -1.0, r"TokenScores: softcap: got -1\.0+, expected 0 \(off\)"),
        ("scale", float("nan"), "TokenScores: scale: got nan, expected a finite number"),
        ("table_heads", 1, "TokenScores: table_heads: got 1, expected 2 to"),
        ("tile_bytes", 16384, "TokenScores: tile_bytes: got 16384, expected those of keys of 64 and values"),
        ("head_dim", 2**20, "TokenScores: head_dim: got 1048576, expected 1 to 8192"),
        ("rows", 70000, "TokenScores: rows: got 70000, expected 0 to 65535"),
        ("type", 2, r"TokenScores: type: got 2, expected 0 \(half\) or 1 \(bfloat16\)"),
        ("ring", None, "TokenScores: ring: got a null pointer, expected device memory"),
        ("importance", None, "TokenScores: importance: got a null pointer"),
    ],
)
def test_a_wrong_call_is_refused(field: str, value: Any, message: str, device: Device) -> None:
    case = BY_NAME["redundant"]
    call, _outputs, _kept = call_of(case, make_inputs(case), "float16", device)
    setattr(call, field, value)
    with pytest.raises(ValueError, match=message):
        run(device, call)
