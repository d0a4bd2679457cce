"""Tests of ClpEmit on a device against its oracle, on the cases of the CPU's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from enginewright.plugins.libraries.cuda_calls import structure_of
from enginewright.plugins.ops.clp_emit import CLP_EMIT, CLP_EMIT_CALL
from tests.support.kernels.device import TYPES, Device, download, rounded, run, to_bits
from tests.support.kernels.guard_pages import stays_within_buffers
from tests.support.ops.clp_cases import CASES, Case, always, make_inputs

ClpEmit = structure_of(CLP_EMIT_CALL)

TYPED = ("hidden", "up_weight", "up_bias", "out_bias", "out_weight")
"""Inputs of the graph's type; the others are what they are."""
POINTERS = (
    *("hidden", "greedy", "classifier_weight", "classifier_bias", "up_weight", "up_bias", "out_bias"),
    *("out_weight", "out_codes", "out_scales", "sample_rows", "query_starts"),
)
UNTOUCHED = 77

MORE_CASES = [
    Case(name="many_steps", size=1160, inner=296, vocab=300, rows=2),
    Case(name="many_steps_codes", size=1160, inner=592, vocab=300, rows=2, codes=True),
    Case(name="just_eight_rows", rows=8),
    Case(name="nine_rows", rows=9, codes=True, inner=64),
    Case(name="many_heads", k=16, classes=17, rows=40, vocab=130),
    Case(name="large_vocab", rows=10, size=16, inner=16, vocab=9001),
]
ALL_CASES = [*CASES, *MORE_CASES]


def as_held(arrays: dict[str, np.ndarray], type: str) -> dict[str, np.ndarray]:
    """The inputs, rounded to numbers that `type` can hold."""
    return {name: rounded(x, type) if name in TYPED else x for name, x in arrays.items()}


def describe(
    device: Device, arrays: dict[str, np.ndarray], type: str, **attributes: Any
) -> tuple[ClpEmit, Callable[[], tuple[np.ndarray, np.ndarray]]]:
    """The call, and a function that downloads tokens and counts."""
    buffers = {name: device.upload(to_bits(x, type) if name in TYPED else x) for name, x in arrays.items()}
    rows, size = arrays["hidden"].shape
    extra, inner = arrays["up_bias"].shape
    tokens = device.upload(np.full((rows, extra + 1), UNTOUCHED, np.int64))
    counts = device.upload(np.full(rows, UNTOUCHED, np.int64))
    call = ClpEmit(
        *(buffers[name].address if name in buffers else None for name in POINTERS),
        tokens.address,
        counts.address,
        *(rows, size, len(arrays["classifier_bias"]), extra, inner, arrays["out_bias"].shape[1]),
        len(arrays["query_starts"]) - 1 if "query_starts" in arrays else 0,
        attributes["tau"],
        attributes.get("activation", 0),
        attributes.get("residual", 0),
        TYPES[type],
    )

    def result() -> tuple[np.ndarray, np.ndarray]:
        assert buffers
        return download(device, tokens), download(device, counts)

    return call, result


def emit(device: Device, arrays: dict[str, np.ndarray], type: str, **attributes: Any) -> tuple[np.ndarray, np.ndarray]:
    call, result = describe(device, arrays, type, **attributes)
    run(device, call)
    return result()


def check(device: Device, arrays: dict[str, np.ndarray], type: str, **attributes: Any) -> list[int]:
    """Tokens and counts must be the oracle's; returns the counts."""
    arrays = as_held(arrays, type)
    with np.errstate(invalid="ignore"):  # infinities are part of the tests
        wanted = CLP_EMIT.load_oracle()(**arrays, **attributes)
    got = emit(device, arrays, type, **attributes)
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    counts: list[int] = got[1].tolist()
    return counts


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, type: str, device: Device) -> None:
    # exactly: the nearest two logits or classes are 4e-4 apart, and a hidden layer of bfloat16, which is rounded by 2^-17,
    # moves a logit by 2^-17 of the sum of its products' magnitudes at most: 2e-4 here
    check(device, make_inputs(case), type, **case.attributes)
    check(device, always(make_inputs(case, 1), case.k - 1), type, **case.attributes)


@pytest.mark.parametrize("type", TYPES)
def test_all_codes_are_themselves(type: str, device: Device) -> None:
    """One input alone, and biases that take -128 .. 127 of it away: a code that is too large would win, or too small."""
    arrays = always(make_inputs(Case(name="codes", rows=1, inner=16, vocab=256, codes=True, k=2, size=16)), 1)
    arrays["up_weight"][:] = 0
    arrays["up_bias"][:] = 32  # GELU leaves it
    codes = np.arange(-128, 128)
    for place in range(16):
        arrays["out_codes"][:] = 0
        arrays["out_codes"][0, :, place] = codes
        for scale in (1, -1):
            arrays["out_scales"][:] = scale
            arrays["out_bias"][0] = -32 * scale * codes
            assert emit(device, arrays, type, k=2, tau=0.3)[0][0, 1] == 0
            arrays["out_bias"][0, 200] += 32  # within what bfloat16 holds
            assert emit(device, arrays, type, k=2, tau=0.3)[0][0, 1] == 200


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("codes", [False, True], ids=["weights", "codes"])
def test_equal_logits_give_the_lowest_token_and_neighbours_change_none(codes: bool, type: str, device: Device) -> None:
    case = Case(name="ties", rows=19, vocab=700, codes=codes)
    arrays = make_inputs(case)
    for name in ("out_weight", "out_codes", "out_scales", "out_bias"):
        if name in arrays:
            arrays[name][:, 1:] = arrays[name][:, :1]
    arrays = always(arrays, 2)
    tokens, counts = emit(device, arrays, type, k=3, tau=0.3)
    assert (counts == 3).all() and (tokens[:, 1:] == 0).all()
    # logits all but equal: one rounding more or less would show
    rng = np.random.default_rng(1)
    arrays["up_bias"] += 3
    arrays["out_bias"] += rng.standard_normal(arrays["out_bias"].shape).astype(np.float32) * 1e-3
    tokens, _ = emit(device, arrays, type, k=3, tau=0.3)
    for row in range(0, case.rows, 5):
        alone = {**arrays, "hidden": arrays["hidden"][row : row + 1], "greedy": arrays["greedy"][row : row + 1]}
        np.testing.assert_array_equal(emit(device, alone, type, k=3, tau=0.3)[0][0], tokens[row])


def test_zeros_of_either_sign_are_equal(device: Device) -> None:
    arrays = always(make_inputs(Case(name="zeros", rows=1, codes=True)), 2)
    for name in ("out_codes", "out_bias"):
        arrays[name][:] = 0
    arrays["out_bias"][:, :3] = -0.0
    arrays["out_scales"][:, :3] = -1  # with it the sum becomes -0
    assert emit(device, arrays, "float16", k=3, tau=0.3)[0][0, 1:].tolist() == [0, 0]


def test_the_cases_emit_every_length(device: Device) -> None:
    case = next(case for case in CASES if case.name == "many_rows")
    assert set(check(device, make_inputs(case), "float16", **case.attributes)) == {1, 2, 3, 4}


def test_only_a_rows_last_token_emits_where_rows_are_given(device: Device) -> None:
    arrays = always(make_inputs(Case(name="rows", rows=7)), 2)
    arrays["query_starts"] = np.array([0, 1, 4, 4, 9, 12], np.int32)  # the third row has no new tokens
    arrays["sample_rows"] = np.array([0, 1, 2, 3, 5, 8, 10])
    assert check(device, arrays, "float16", k=3, tau=0.3) == [3, 1, 1, 3, 1, 3, 1]
    arrays["query_starts"] = np.array([0, *range(20, 59), 60], np.int32)  # more sequences than a warp has lanes
    arrays["sample_rows"] = np.array([0, 19, 20, 52, 57, 58, 59])
    assert check(device, arrays, "float16", k=3, tau=0.3) == [1, 3, 3, 3, 3, 1, 3]


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("codes", [False, True], ids=["weights", "codes"])
def test_what_is_not_finite_is_not_emitted(codes: bool, type: str, device: Device) -> None:
    arrays = always(make_inputs(Case(name="bad", rows=6, vocab=600, codes=codes)), 2)
    arrays["hidden"][1, 3] = np.nan
    arrays["greedy"][2] = -1
    arrays["out_bias"][0, 5] = -np.inf  # a banned token is no harm
    assert check(device, arrays, type, k=3, tau=0.3) == [3, 1, 1, 3, 3, 3]
    for value, spoilt in ((np.nan, 1), (np.inf, 1), (-np.inf, 600)):
        arrays["out_bias"][1, 600 - spoilt :] = value
        assert check(device, arrays, type, k=3, tau=0.3) == [2, 1, 1, 2, 2, 2]
    arrays["up_bias"][0, 0] = np.nan
    assert check(device, arrays, type, k=3, tau=0.3) == [1] * 6
    arrays["up_bias"][0, 0] = np.inf
    assert check(device, arrays, type, k=3, tau=0.3) == [1] * 6


@pytest.mark.parametrize("type", TYPES)
def test_hidden_layers_beyond_a_half_are_finite(type: str, device: Device) -> None:
    arrays = always(make_inputs(Case(name="large", rows=2)), 2)
    arrays["hidden"] *= 500
    arrays["up_weight"] *= 60
    arrays["out_weight"] /= 256
    held = as_held(arrays, type)
    largest = np.abs(held["hidden"] @ held["up_weight"][0].T).max()
    assert 65504 < largest < 131008
    check(device, arrays, type, k=3, tau=0.3)


@pytest.mark.parametrize(("scores", "tau", "count"), [([0, 0, 0], 0.3, 1), ([-1, 2, 2], 0.3, 2), ([-1, 2, 2], 0.5, 1)])
def test_the_first_class_among_equals(scores: list[float], tau: float, count: int, device: Device) -> None:
    arrays = make_inputs(Case(name="tie"))
    arrays |= {"classifier_weight": np.zeros((3, 48), np.float32), "classifier_bias": np.array(scores, np.float32)}
    assert check(device, arrays, "float16", k=3, tau=tau) == [count] * 5


@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)
def test_nothing_behind_a_buffer_is_read(case: Case, device: Device) -> None:
    if device.name != "emulated":
        pytest.skip("a GPU's buffers have no such edges")
    arrays = always(make_inputs(case), case.k - 1)
    arrays["query_starts"] = np.arange(case.rows + 1, dtype=np.int32)
    arrays["sample_rows"] = np.arange(case.rows)
    assert stays_within_buffers(device, lambda tight: emit(tight, arrays, "float16", **case.attributes))


BAD: dict[str, dict[str, Any]] = {
    **{f"{name}: got a null pointer": {name: None} for name in ("hidden", "greedy", "up_weight", "up_bias", "tokens")},
    **{f"{name}: got a null pointer": {name: None} for name in ("classifier_weight", "classifier_bias", "counts")},
    "out_bias: got a null pointer": {"out_bias": None},
    "hidden: got an address that is not a multiple of 16": {"hidden": 264},
    "out_weight: got neither, expected either it or out_codes": {"out_weight": None},
    "out_weight: got both": {"out_codes": 256},
    "out_scales: got only one of the two, expected both or neither of it and out_codes": {"out_scales": 256},
    "query_starts: got only one of the two, expected both or neither of it and sample_rows": {"sample_rows": 256},
    "rows: got 1025, expected 0 to 1024": {"rows": 1025},
    "rows: got -1": {"rows": -1},
    "size: got 0, expected 1 to": {"size": 0},
    "inner: got 0, expected 1 to": {"inner": 0},
    "vocab: got 0, expected 1 to": {"vocab": 0},
    "classes: got 257, expected 1 to 256": {"classes": 257},
    "extra: got 0, expected 1 to 15": {"extra": 0},
    "extra: got 16, expected 1 to 15": {"extra": 16},
    "tau: got NaN, expected a number": {"tau": float("nan")},
    "activation: got 2, expected 0 to 1": {"activation": 2},
    "residual: got -1, expected 0 to 1": {"residual": -1},
    "inner: got 24, expected size = 48, because residual = 1": {"residual": 1},
    "type: got 7, expected 0": {"type": 7},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_call_is_refused(message: str, device: Device) -> None:
    call, result = describe(device, make_inputs(Case(name="errors")), "float16", tau=0.3)
    needed = device.library.workspace_bytes(call)
    workspace = device.upload(np.zeros(needed, np.uint8))
    for name, value in BAD[message].items():
        setattr(call, name, value)
    with pytest.raises(ValueError, match="ClpEmit: " + message):
        device.library.start(call, workspace.address, needed)
    device.synchronize()
    assert all((x == UNTOUCHED).all() for x in result()), "a refused call wrote"


def test_a_small_workspace_is_refused(device: Device) -> None:
    call, _ = describe(device, make_inputs(Case(name="errors")), "float16", tau=0.3)
    needed = device.library.workspace_bytes(call)
    with pytest.raises(ValueError, match=f"ClpEmit: workspace: got {needed - 1}, expected {needed} bytes or more"):
        device.library.start(call, 256, needed - 1)
    with pytest.raises(ValueError, match="ClpEmit: workspace: got a null pointer"):
        device.library.start(call, None, needed)
