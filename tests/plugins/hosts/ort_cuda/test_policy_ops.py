"""The adapters of the ops of cache policies for ONNX Runtime's CUDA provider, in halves, over the emulated kernels.

The emulated library registers its ops for the CPU provider, so no GPU is needed.
"""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.plugins.ops.hold_queries import HOLD_QUERIES
from tests.support.kernels.fixtures import open_device
from tests.support.ops import compact_tiles_cases, hold_queries_cases, mark_tokens_cases, token_scores_cases
from tests.support.ops.op_session import open_op, run_op_in_place

pytestmark = pytest.mark.emulated
Arrays = dict[str, np.ndarray]


def halves(arrays: Arrays, *names: str) -> Arrays:
    return arrays | {name: arrays[name].astype(np.float16) for name in names}


def run(op: str, arrays: Arrays, **attributes: object) -> list[np.ndarray]:
    return run_op_in_place(op, arrays, kernels=open_device("emulated").library.path, **attributes)


def test_hold_queries_updates_the_ring() -> None:
    arrays = halves(hold_queries_cases.make_inputs(hold_queries_cases.CASES[3]), "query", "ring")
    np.testing.assert_array_equal(run("HoldQueries", arrays)[0], HOLD_QUERIES.load_oracle()(**arrays))


@pytest.mark.parametrize("case", compact_tiles_cases.CASES[4:7], ids=lambda case: case.name)
def test_compact_tiles_moves_tokens(case: compact_tiles_cases.Case) -> None:
    arrays = compact_tiles_cases.make_inputs(case)
    found = run("CompactTiles", arrays, **case.attributes)
    for got, wanted in zip(found, compact_tiles_cases.expected(case, arrays), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", ["lens_per_head", "sinks_1_2", "late_records"])
def test_token_scores(name: str) -> None:
    case = next(case for case in token_scores_cases.CASES if case.name == name)
    arrays = halves(token_scores_cases.make_inputs(case), "ring")
    found = run("TokenScores", arrays, **case.attributes)
    token_scores_cases.check(case, found, token_scores_cases.expected(case, arrays))


@pytest.mark.parametrize("name", ["mixed_0", "sinks_1", "mixed_2"])
def test_mark_tokens_updates_the_marks(name: str) -> None:
    case = next(case for case in mark_tokens_cases.CASES if case.name == name)
    arrays = halves(mark_tokens_cases.make_inputs(case), "query")
    (got,) = run("MarkTokens", arrays, **case.attributes)
    mark_tokens_cases.check(case, got, mark_tokens_cases.expected(case, arrays))


def test_a_pool_of_its_own_is_refused() -> None:
    case = compact_tiles_cases.CASES[3]
    arrays = compact_tiles_cases.make_inputs(case)
    library = open_device("emulated").library.path
    session = open_op("CompactTiles", tuple(arrays), tuple(case.attributes.items()), 1, library)
    with pytest.raises(
        Exception, match="CompactTiles: tiles_out: got a buffer of its own, expected the one bound as input"
    ):
        session.run(None, arrays)
