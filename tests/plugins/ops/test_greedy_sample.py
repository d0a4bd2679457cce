"""Tests of GreedySample through ONNX Runtime against its oracle."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.plugins.ops.greedy_sample import GREEDY_SAMPLE
from tests.support.ops.op_session import run_op

pytestmark = pytest.mark.native


@pytest.mark.parametrize("vocab", [1, 3, 127, 128, 4096, 4097, 30001])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_matches_the_oracle(vocab: int, rows: int, isa: str) -> None:
    logits = np.random.default_rng(vocab).standard_normal((rows, vocab)).astype(np.float32)
    (tokens,) = run_op("GreedySample", {"logits": logits})
    np.testing.assert_array_equal(tokens, GREEDY_SAMPLE.load_oracle()(logits))
    np.testing.assert_array_equal(tokens, logits.argmax(1))


def test_ties_and_what_is_not_finite(isa: str) -> None:
    logits = np.zeros((8, 9001), np.float32)
    logits[1, [4500, 8999]] = 1  # the lowest index of equals
    logits[2, 7777] = np.nan  # one NaN spoils its row
    logits[3] = np.nan
    logits[4] = -np.inf
    logits[5] = -np.inf
    logits[5, 9000] = np.finfo(np.float32).min
    logits[6, 3] = np.inf
    logits[7, 0] = -np.inf  # banned tokens are no harm
    (tokens,) = run_op("GreedySample", {"logits": logits})
    assert tokens.tolist() == [0, 4500, -1, -1, -1, 9000, -1, 1]
    np.testing.assert_array_equal(tokens, GREEDY_SAMPLE.load_oracle()(logits))


def test_no_rows(isa: str) -> None:
    assert run_op("GreedySample", {"logits": np.empty((0, 7), np.float32)})[0].shape == (0,)


def test_an_empty_vocabulary_is_refused() -> None:
    with pytest.raises(Exception, match="GreedySample: logits: got V = 0, expected 1 or more"):
        run_op("GreedySample", {"logits": np.empty((1, 0), np.float32)})
