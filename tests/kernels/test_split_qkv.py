"""Tests of SplitQkv on a device against its oracle."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.plugins.libraries.cuda_calls import structure_of
from enginewright.plugins.ops.split_qkv import SPLIT_QKV, SPLIT_QKV_CALL
from tests.support.kernels.device import TYPES, Device, download, from_bits, rounded, run, to_bits
from tests.support.ops.split_qkv_cases import CASES, Case, make_inputs

SplitQkv = structure_of(SPLIT_QKV_CALL)

HALF_UNIT = {"float16": 2**-11, "bfloat16": 2**-8}
"""The allowed rounding error of a result of magnitude 1."""


def call_of(case: Case, device: Device, arrays: dict[str, np.ndarray], type: str) -> tuple[SplitQkv, list]:
    given = {name: device.upload(to_bits(array, type)) for name, array in arrays.items()}
    shapes = [
        (case.tokens, case.query_heads, case.head_dim),
        (case.tokens, case.kv_heads, case.head_dim),
        (case.tokens, case.kv_heads, case.value_dim),
    ]
    outputs = [device.upload(np.full(shape, 0xFFFF, np.uint16)) for shape in shapes]
    call = SplitQkv(
        **{name: buffer.address for name, buffer in given.items()},
        **dict(zip(("query", "key", "value"), (buffer.address for buffer in outputs), strict=True)),
        **{
            name: getattr(case, name) for name in ("tokens", "query_heads", "kv_heads", "head_dim", "value_dim", "half")
        },
        epsilon=1e-6 if case.epsilon is None else case.epsilon,
        type=TYPES[type],
    )
    return call, [outputs, given]


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, type: str, device: Device) -> None:
    arrays = {name: rounded(array, type) for name, array in make_inputs(case).items()}
    call, (outputs, _given) = call_of(case, device, arrays, type)
    run(device, call)
    for buffer, wanted in zip(outputs, SPLIT_QKV.load_oracle()(**arrays, **case.attributes), strict=True):
        got = from_bits(download(device, buffer), type)
        # one rounding of the result, and float32's before it
        np.testing.assert_allclose(got, wanted, rtol=1.01 * HALF_UNIT[type], atol=2e-6)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("half", 33, "SplitQkv: half: got 33, expected 0 to half of head_dim"),
        ("kv_heads", 0, "SplitQkv: kv_heads: got 0, expected 1 to 4096"),
        ("type", 2, r"SplitQkv: type: got 2, expected 0 \(half\) or 1 \(bfloat16\)"),
        ("cos", None, "SplitQkv: cos: got a null pointer, expected device memory"),
        (
            "key_norm",
            None,
            "SplitQkv: key_norm: got only one of the two, expected both or neither of it and query_norm",
        ),
        ("epsilon", -1.0, r"SplitQkv: epsilon: got -1\.0+, expected 0 or more"),
    ],
)
def test_a_wrong_call_is_refused(field: str, value: float | None, message: str, device: Device) -> None:
    case = Case(name="errors", norm=True)
    call, _kept = call_of(case, device, make_inputs(case), "float16")
    setattr(call, field, value)
    with pytest.raises(ValueError, match=message):
        run(device, call)
