"""Tests of DepthMix on a device against its oracle, on the cases of the CPU's tests."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest

from enginewright.plugins.libraries.cuda_calls import structure_of
from enginewright.plugins.ops.depth_mix import DEPTH_MIX_CALL
from tests.support.kernels.device import TYPES, Device, download, from_bits, rounded, run, to_bits
from tests.support.kernels.guard_pages import stays_within_buffers
from tests.support.ops.depth_mix_cases import CASES, Case, expected, make_inputs

DepthMix = structure_of(DEPTH_MIX_CALL)

STEP, MOST = 8, 512
MOST_SOURCES = 64
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of one rounding: that of the output."""

MORE_CASES = [
    *(
        Case(name=f"dim_{dim}_{value_dim}", tokens=5, dim=dim, value_dim=value_dim)
        for dim, value_dim in (
            (8, 8),
            (72, 8),
            (80, 80),
            (8, 136),
            (256, 128),
            (264, 16),
            (128, 512),
            (512, 512),
        )
    ),
    Case(name="sources_to_the_brim", sources=MOST_SOURCES, tokens=2),
    *(Case(name=f"{sources}_sources", sources=sources, tokens=2, dim=320) for sources in (3, 4, 5)),
    Case(name="large_group", query_heads=22, kv_heads=2, dim=16),
]


def is_supported(case: Case) -> bool:
    return all(size % STEP == 0 and STEP <= size <= MOST for size in (case.dim, case.value_dim))


def describe(
    device: Device, case: Case, arrays: dict[str, np.ndarray], type: str
) -> tuple[DepthMix, Callable[[], np.ndarray]]:
    """The call, and a function that downloads its result."""
    buffers = {name: device.upload(to_bits(array, type)) for name, array in arrays.items()}
    mixed = device.upload(np.full((case.tokens, case.kv_heads, case.value_dim), 0x7BFF, np.uint16))
    sources = (ctypes.c_void_p * (2 * case.sources))(
        *(buffers[f"sources.{i}"].address for i in range(2 * case.sources))
    )
    call = DepthMix(
        *(buffers[name].address for name in ("query", "key", "value")),
        ctypes.cast(sources, ctypes.c_void_p),
        mixed.address,
        case.tokens,
        case.query_heads,
        case.kv_heads,
        case.dim,
        case.value_dim,
        case.sources,
        case.attributes["scale"],
        TYPES[type],
    )
    owners = (buffers, sources)

    def result() -> np.ndarray:
        assert owners
        return from_bits(download(device, mixed), type)

    return call, result


def mix(device: Device, case: Case, arrays: dict[str, np.ndarray], type: str) -> np.ndarray:
    call, result = describe(device, case, arrays, type)
    run(device, call)
    return result()


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", [*CASES, *MORE_CASES], ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, type: str, device: Device) -> None:
    arrays = {name: rounded(array, type) for name, array in make_inputs(case).items()}
    if not is_supported(case):
        with pytest.raises(ValueError, match=r"DepthMix: head_dim: got \d, expected a multiple of 8 up to 512"):
            mix(device, case, arrays, type)
        return
    got = mix(device, case, arrays, type)
    np.testing.assert_allclose(got, expected(case, arrays), rtol=UNIT[type], atol=case.tolerance)


@pytest.mark.parametrize("type", TYPES)
def test_neighbours_change_no_bit(type: str, device: Device) -> None:
    case = Case(name="many", tokens=37, dim=96, value_dim=96)
    arrays = make_inputs(case)
    every = mix(device, case, arrays, type)
    one = Case(name="one", tokens=1, dim=96, value_dim=96)
    alone = mix(device, one, {name: x[11:12] for name, x in arrays.items()}, type)
    np.testing.assert_array_equal(alone[0], every[11])


@pytest.mark.parametrize("type", TYPES)
def test_without_sources_the_value_stays(type: str, device: Device) -> None:
    case = Case(name="copy", sources=0, magnitude=40.0)
    arrays = make_inputs(case)
    np.testing.assert_array_equal(mix(device, case, arrays, type), rounded(arrays["value"], type))


@pytest.mark.parametrize("type", TYPES)
def test_scores_that_no_exponential_holds(type: str, device: Device) -> None:
    case = Case(name="extreme", sources=3, magnitude=1e4)
    arrays = {name: rounded(array, type) for name, array in make_inputs(case).items()}
    # all weight on one layer, whose value comes out as it went in
    np.testing.assert_array_equal(mix(device, case, arrays, type), expected(case, arrays))


def test_what_is_not_finite_stays_in_its_head(device: Device) -> None:
    case = Case(name="spoilt", tokens=6)
    arrays = make_inputs(case)
    arrays["sources.2"][4, 1, 3] = np.nan
    spoilt = np.isnan(mix(device, case, arrays, "float16"))
    assert spoilt[4, 1].all() and spoilt.sum() == case.value_dim


@pytest.mark.parametrize(("dim", "value_dim"), [(8, 24), (72, 80), (264, 8), (512, 512)])
def test_nothing_behind_a_buffer_is_read(dim: int, value_dim: int, device: Device) -> None:
    if device.name != "emulated":
        pytest.skip("a GPU's buffers have no such edges")
    case = Case(name="edges", tokens=5, kv_heads=1, query_heads=3, dim=dim, value_dim=value_dim)
    arrays = make_inputs(case)
    assert stays_within_buffers(device, lambda tight: mix(tight, case, arrays, "float16"))


BAD = {
    "query: got a null pointer": {"query": None},
    "mixed: got a null pointer": {"mixed": None},
    "sources: got a null pointer": {"sources": None},
    "key: got an address that is not a multiple of 16": {"key": 264},
    "tokens: got -1, expected 0 or more": {"tokens": -1},
    "kv_heads: got 0, expected 1 or more": {"kv_heads": 0},
    "query_heads: got 3, expected a multiple of the key's 2": {"query_heads": 3},
    "head_dim: got 520, expected a multiple of 8 up to 512": {"head_dim": 520},
    "value_dim: got 60, expected a multiple of 8 up to 512": {"value_dim": 60},
    "source_count: got 65, expected 0 to 64": {"source_count": 65},
    "source_count: got -1": {"source_count": -1},
    "scale: got inf, expected a finite number": {"scale": float("inf")},
    r"type: got 2, expected 0 \(half\) or 1 \(bfloat16\)": {"type": 2},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_call_is_refused(message: str, device: Device) -> None:
    case = Case(name="errors")
    call, result = describe(device, case, make_inputs(case), "float16")
    for name, value in BAD[message].items():
        setattr(call, name, value)
    with pytest.raises(ValueError, match="DepthMix: " + message):
        device.library.start(call, None, 0)
    device.synchronize()
    assert (result() == 65504).all(), "a refused call wrote"


def test_a_null_source_is_refused(device: Device) -> None:
    case = Case(name="errors")
    call, _ = describe(device, case, make_inputs(case), "float16")
    array = ctypes.cast(call.sources, ctypes.POINTER(ctypes.c_void_p))
    array[3] = None
    with pytest.raises(ValueError, match=r"DepthMix: sources\[3\]: got a null pointer"):
        device.library.start(call, None, 0)
