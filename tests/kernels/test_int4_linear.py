"""Tests of Int4Linear on a device against its definition in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from enginewright.plugins.libraries.cuda_calls import structure_of
from enginewright.plugins.ops.int4_linear import INT4_LINEAR_CALL
from tests.support.kernels.device import TYPES, Device, download, from_bits, rounded, run, to_bits
from tests.support.kernels.guard_pages import stays_within_buffers

Int4Linear = structure_of(INT4_LINEAR_CALL)

BLOCKS = (16, 32, 64, 128)
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of one rounding: that of the output."""
UNTOUCHED = 0x7BFF


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call."""

    name: str
    rows: int = 3
    outputs: int = 48
    size: int = 256
    block: int = 32


CASES = [
    Case(name="usual"),
    Case(name="no_row", rows=0),
    *(Case(name=f"{rows}_rows", rows=rows) for rows in (1, 7, 8, 9, 16, 17, 33)),
    *(Case(name=f"{outputs}_outputs", outputs=outputs) for outputs in (1, 15, 16, 17, 131)),
    *(Case(name=f"blocks_of_{block}", block=block, size=1280, rows=9) for block in BLOCKS),
    *(Case(name=f"size_{size}", size=size, outputs=17) for size in (32, 96, 128, 160, 992, 1024, 1056)),
    *(Case(name=f"size_{size}_blocks_of_16", size=size, block=16, outputs=17) for size in (32, 160, 1056)),
    *(Case(name=f"size_{size}_blocks_of_64", size=size, block=64, outputs=17) for size in (64, 192, 1088)),
    Case(name="every_stage_twice", size=9 * 1024 - 96, outputs=20, rows=2),
    Case(name="every_stage_twice_16", size=9 * 1024 - 32, outputs=20, rows=10, block=16),
]


@dataclass(frozen=True)
class Operands:
    """x[rows, size], codes[outputs, size] of 0 .. 15, scales[outputs, size / block]; floats are of the type."""

    x: np.ndarray
    codes: np.ndarray
    scales: np.ndarray
    type: str
    weight: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        each = self.codes.shape[1] // self.scales.shape[1]
        scales = np.repeat(self.scales.astype(np.float64), each, axis=1)
        object.__setattr__(self, "weight", (self.codes.astype(np.float64) - 8) * scales)

    def packed(self) -> np.ndarray:
        """Two codes per byte, low nibble first: [outputs, size / 2]."""
        return np.asarray(self.codes[:, 0::2] | (self.codes[:, 1::2] << 4))

    def multiply(self) -> np.ndarray:
        """The definition of Int4Linear: x times the dequantised W transposed."""
        return np.asarray(self.x.astype(np.float64) @ self.weight.T)

    def bound(self) -> np.ndarray:
        """The allowed error of float32 sums: 2^-18 of the sum of all magnitudes, because float32 has 24 bits."""
        return np.asarray(np.abs(self.x).astype(np.float64) @ np.abs(self.weight).T) * 2.0**-18


def make_operands(case: Case, type: str, seed: int = 0) -> Operands:
    rng = np.random.default_rng(seed)
    return Operands(
        rounded(rng.standard_normal((case.rows, case.size)).astype(np.float32), type),
        rng.integers(0, 16, (case.outputs, case.size)).astype(np.uint8),
        rounded((rng.standard_normal((case.outputs, case.size // case.block)) * 0.05).astype(np.float32), type),
        type,
    )


def describe(device: Device, operands: Operands) -> tuple[Int4Linear, Callable[[], np.ndarray]]:
    """The call, and a function that downloads its result."""
    x, codes = device.upload(to_bits(operands.x, operands.type)), device.upload(operands.packed())
    scales = device.upload(to_bits(operands.scales, operands.type))
    rows, outputs = len(operands.x), len(operands.codes)
    out = device.upload(np.full((rows, outputs), UNTOUCHED, np.uint16))
    size = operands.codes.shape[1]
    call = Int4Linear(
        *(x.address, codes.address, scales.address, out.address),
        *(rows, outputs, size, size // operands.scales.shape[1]),
        TYPES[operands.type],
        0,
    )
    owners = (x, codes, scales)

    def result() -> np.ndarray:
        assert owners
        return from_bits(download(device, out), operands.type)

    return call, result


def multiply(device: Device, operands: Operands) -> np.ndarray:
    call, result = describe(device, operands)
    run(device, call)
    return result()


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_definition(case: Case, type: str, device: Device) -> None:
    operands = make_operands(case, type)
    wanted = operands.multiply()
    error = np.abs(multiply(device, operands) - wanted)
    assert (error <= operands.bound() + UNIT[type] * np.abs(wanted)).all()


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("block", BLOCKS)
def test_each_weight_is_in_its_place(block: int, type: str, device: Device) -> None:
    """Rows of the unit matrix: the result is W itself, each number rounded once."""
    case = Case(name="places", outputs=32, size=256, block=block)
    operands = make_operands(case, type)
    operands.codes[:16] = np.arange(256) % 16  # all codes in all places
    unit = Operands(np.eye(256, dtype=np.float32), operands.codes, operands.scales, type)
    got = multiply(device, unit)
    np.testing.assert_array_equal(got, rounded(unit.weight.T.astype(np.float32), type))


@pytest.mark.parametrize("block", BLOCKS)
def test_the_layout_is_that_of_matmul_nbits(block: int, device: Device) -> None:
    """ONNX Runtime's own op, with the bytes that the device gets."""
    ort, helper = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx.helper")
    operands = make_operands(Case(name="layout", block=block), "float16")
    (outputs, size), count = operands.codes.shape, operands.scales.shape[1]
    attributes = {"K": size, "N": outputs, "bits": 4, "block_size": block}
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["out"], domain="com.microsoft", **attributes)
    kinds = {"x": 1, "codes": 2, "scales": 1, "out": 1}  # float, uint8
    values = {name: helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()}
    out = values.pop("out")
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", [*values.values()], [out]), opset_imports=opsets, ir_version=10
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    packed = operands.packed().reshape(outputs, count, block // 2)
    (wanted,) = session.run(None, {"x": operands.x, "codes": packed, "scales": operands.scales})
    error = np.abs(multiply(device, operands) - wanted)
    assert (error <= operands.bound() + UNIT["float16"] * np.abs(wanted)).all()


@pytest.mark.parametrize("type", TYPES)
def test_a_row_does_not_depend_on_the_others(type: str, device: Device) -> None:
    operands = make_operands(Case(name="rows", rows=21, size=1056), type)
    every = multiply(device, operands)
    for row in (0, 8, 20):
        alone = Operands(operands.x[row : row + 1], operands.codes, operands.scales, type)
        np.testing.assert_array_equal(multiply(device, alone)[0], every[row])


def test_large_numbers_of_bfloat16(device: Device) -> None:
    """Numbers above and below the range of a half."""
    operands = make_operands(Case(name="range"), "bfloat16")
    for x_scale, scale in ((2.0**40, 2.0**20), (2.0**-40, 2.0**-20)):
        moved = Operands(
            operands.x * np.float32(x_scale), operands.codes, operands.scales * np.float32(scale), "bfloat16"
        )
        np.testing.assert_array_equal(
            multiply(device, moved), multiply(device, operands) * np.float32(x_scale) * np.float32(scale)
        )


def test_what_is_not_finite_stays_in_its_row(device: Device) -> None:
    operands = make_operands(Case(name="spoilt", rows=5), "float16")
    operands.x[3, 100] = np.nan
    spoilt = np.isnan(multiply(device, operands))
    assert spoilt[3].all() and spoilt.sum() == spoilt.shape[1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_behind_a_buffer_is_read(case: Case, device: Device) -> None:
    if device.name != "emulated":
        pytest.skip("a GPU's buffers have no such edges")
    operands = make_operands(case, "float16")
    assert stays_within_buffers(device, lambda tight: multiply(tight, operands))


BAD: dict[str, dict[str, Any]] = {
    **{f"{name}: got a null pointer": {name: None} for name in ("x", "codes", "scales", "out")},
    "x: got an address that is not a multiple of 16": {"x": 264},
    "codes: got an address that is not a multiple of 16": {"codes": 264},
    "block: got 48, expected one of 16, 32, 64, 128": {"block": 48},
    "size: got 48, expected a multiple of 32 and of block = 16": {"size": 48, "block": 16},
    "size: got 96, expected a multiple of 32 and of block = 64": {"size": 96, "block": 64},
    "size: got 0, expected 1 to": {"size": 0},
    "outputs: got 0, expected 1 to": {"outputs": 0},
    "rows: got -1, expected 0 to": {"rows": -1},
    "rows: got 600000, expected 0 to 524280": {"rows": 600000},
    "type: got 3, expected 0": {"type": 3},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_call_is_refused(message: str, device: Device) -> None:
    call, result = describe(device, make_operands(Case(name="errors"), "float16"))
    for name, value in BAD[message].items():
        setattr(call, name, value)
    with pytest.raises(ValueError, match="Int4Linear: " + message):
        device.library.start(call, None, 0)
    device.synchronize()
    assert (result() == 65504).all(), "a refused call wrote"
