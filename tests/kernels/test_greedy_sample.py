"""Tests of GreedySample on a device against its oracle."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.plugins.libraries.cuda_calls import structure_of
from enginewright.plugins.ops.greedy_sample import GREEDY_SAMPLE, GREEDY_SAMPLE_CALL
from tests.support.kernels.device import Device, download, run

GreedySample = structure_of(GREEDY_SAMPLE_CALL)


def sample(device: Device, logits: np.ndarray) -> np.ndarray:
    given, tokens = device.upload(logits), device.upload(np.full(len(logits), 7777, np.int64))
    rows, vocab = logits.shape
    run(device, GreedySample(logits=given.address, tokens=tokens.address, rows=rows, vocab=vocab))
    return download(device, tokens)


@pytest.mark.parametrize("vocab", [1, 3, 127, 128, 511, 512, 513, 4097])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_matches_the_oracle(vocab: int, rows: int, device: Device) -> None:
    logits = np.random.default_rng(vocab).standard_normal((rows, vocab)).astype(np.float32)
    np.testing.assert_array_equal(sample(device, logits), GREEDY_SAMPLE.load_oracle()(logits))


def test_ties_and_what_is_not_finite(device: Device) -> None:
    logits = np.zeros((9, 3001), np.float32)
    logits[1, [1500, 2999]] = 1  # the lowest index of equals
    logits[2, 2777] = np.nan  # one NaN spoils its row
    logits[3] = np.nan
    logits[4] = -np.inf
    logits[5] = -np.inf
    logits[5, 3000] = np.finfo(np.float32).min
    logits[6, 3] = np.inf
    logits[7, 0] = -np.inf  # banned tokens are no harm
    logits[8, [1, 513]] = 2  # of one thread and of another
    assert sample(device, logits).tolist() == [0, 1500, -1, -1, -1, 3000, -1, 1, 1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("vocab", 0, "GreedySample: vocab: got 0, expected 1 or more"),
        ("rows", -1, "GreedySample: rows: got -1, expected 0 or more"),
        ("logits", None, "GreedySample: logits: got a null pointer, expected device memory"),
    ],
)
def test_a_wrong_call_is_refused(field: str, value: int | None, message: str, device: Device) -> None:
    logits, tokens = device.upload(np.zeros((1, 4), np.float32)), device.upload(np.zeros(1, np.int64))
    call = GreedySample(logits=logits.address, tokens=tokens.address, rows=1, vocab=4)
    setattr(call, field, value)
    with pytest.raises(ValueError, match=message):
        run(device, call)
