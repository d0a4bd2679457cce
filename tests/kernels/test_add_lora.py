"""Tests of AddLora on a device against its oracle."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from enginewright.plugins.libraries.cuda_calls import structure_of
from enginewright.plugins.ops.add_lora import ADD_LORA_CALL
from tests.support.kernels.device import TYPES, Device, download, from_bits, rounded, run, to_bits
from tests.support.ops.add_lora_cases import CASES, Case, expected, make_inputs

AddLora = structure_of(ADD_LORA_CALL)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, type: str, device: Device) -> None:
    arrays = make_inputs(case)
    for name in ("base", "x"):
        arrays[name] = rounded(arrays[name], type)
    wanted = expected(case, arrays)
    made = device.upload(np.full(max(wanted.size, 1), 0xFFFF, np.uint16))
    given = {name: device.upload(to_bits(arrays[name], type)) for name in ("base", "x")}
    given |= {name: device.upload(arrays[name]) for name in ("index", "scale")}
    factors = [device.upload(x.view(np.uint16)) for name, x in arrays.items() if name.startswith("factors")]
    pointers = (ctypes.c_void_p * len(factors))(*(factor.address for factor in factors))
    widths = (ctypes.c_int64 * len(case.segments))(*case.segments)
    call = AddLora(
        **{name: x.address for name, x in given.items()},
        factors=ctypes.cast(pointers, ctypes.c_void_p),
        widths=ctypes.cast(widths, ctypes.c_void_p),
        sum=made.address,
        tokens=len(case.index),
        outputs=sum(case.segments),
        size=case.size,
        capacity=case.capacity,
        layers=case.layers,
        layer=case.layer,
        rank=case.rank,
        segments=len(case.segments),
        type=TYPES[type],
    )
    run(device, call)
    got = from_bits(download(device, made), type)[: wanted.size].reshape(wanted.shape)
    step = 2.0**-10 if type == "float16" else 2.0**-7  # the result is rounded once
    np.testing.assert_allclose(got, wanted, rtol=step, atol=3e-5)
    np.testing.assert_array_equal(got[0, case.without], arrays["base"][0, case.without])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", -1, "AddLora: tokens: got -1, expected 0 to"),
        ("layer", 1, "AddLora: layer: got 1, expected 0 to 0"),
        ("outputs", 9, "AddLora: widths: got 8, expected a sum of outputs = 9"),
        ("segments", 9, "AddLora: segments: got 9, expected 1 to 8"),
        ("widths", None, "AddLora: widths: got a null pointer"),
        ("rank", 0, "AddLora: rank: got 0, expected 1 to"),
        ("type", 2, r"AddLora: type: got 2, expected 0 \(half\) or 1 \(bfloat16\)"),
        ("sum", None, "AddLora: sum: got a null pointer, expected device memory"),
        ("index", None, "AddLora: index: got a null pointer, expected device memory"),
    ],
)
def test_a_wrong_call_is_refused(field: str, value: int | None, message: str, device: Device) -> None:
    halves = device.upload(np.zeros(64, np.uint16))
    words = device.upload(np.zeros(4, np.int32))
    tensors = dict.fromkeys(("base", "x", "sum"), halves.address)
    pointers, widths = (ctypes.c_void_p * 2)(halves.address, halves.address), (ctypes.c_int64 * 1)(8)
    lists = {"factors": ctypes.cast(pointers, ctypes.c_void_p), "widths": ctypes.cast(widths, ctypes.c_void_p)}
    sizes = {"tokens": 1, "outputs": 8, "size": 8, "capacity": 1, "layers": 1, "rank": 1, "segments": 1}
    call = AddLora(**tensors, **lists, index=words.address, scale=words.address, **sizes)
    setattr(call, field, value)
    with pytest.raises(ValueError, match=message):
        run(device, call)
