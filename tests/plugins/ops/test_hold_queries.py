"""Tests of HoldQueries through ONNX Runtime against its oracle."""

from __future__ import annotations

import numpy as np
import pytest

from enginewright.plugins.ops.hold_queries import HOLD_QUERIES
from tests.support.ops.bad_inputs import put, replaced
from tests.support.ops.hold_queries_cases import CASES, Case, make_inputs
from tests.support.ops.op_session import run_op, run_op_in_place

pytestmark = pytest.mark.native
ERRORS = Case(name="errors", rows=((5, 2), (0, 0), (9, 1)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle_and_itself_in_place(case: Case) -> None:
    arrays = make_inputs(case)
    wanted = HOLD_QUERIES.load_oracle()(**arrays)
    np.testing.assert_array_equal(run_op("HoldQueries", arrays)[0], wanted)
    np.testing.assert_array_equal(run_op_in_place("HoldQueries", arrays)[0], wanted)


def test_drafts_that_are_taken_back_overwrite_no_query_of_the_window() -> None:
    """R = window + most drafts: after a draft of 3 is refused, positions 0 to 9 are followed by another 10."""
    window, drafts = 4, 3
    case = Case(name="drafts", rows=((0, 10),), entries=window + drafts)
    arrays = make_inputs(case)
    (ring,) = run_op("HoldQueries", arrays)
    more = make_inputs(Case(name="more", rows=((10, 1 + drafts),), entries=window + drafts))
    (ring,) = run_op("HoldQueries", {**more, "ring": ring, "slots": arrays["slots"]})
    slot = ring[arrays["slots"][0]]
    for position in range(10 + 1 - window, 10):
        np.testing.assert_array_equal(slot[:, position % case.entries], arrays["query"][position])
    np.testing.assert_array_equal(slot[:, 10 % case.entries], more["query"][0])


BAD = {
    r"query_starts\[0\]: got 1, expected 0": put("query_starts", 0, 1),
    r"query_starts\[3\]: got 4, expected T = 3": put("query_starts", 3, 4),
    r"slots\[0\]: got 5, expected a slot in \[0, 5\)": put("slots", 0, 5),
    r"slots\[2\]: got -1, expected a slot in \[0, 5\)": put("slots", 2, -1),
    r"slots\[2\]: got \d, expected a slot that no other row has": lambda arrays: put("slots", 2, arrays["slots"][0])(
        arrays
    ),
    r"position_ids\[1\]: got -1, expected 0 or more": put("position_ids", 1, -1),
    r"ring: got shape \[5, 3, 8, 64\], expected \[S, Hq, R, D\] = \[any, 4, any, 64\]": replaced(
        "ring", lambda x: x[:, :3]
    ),
    r"ring: got R = 0, expected 1 or more": replaced("ring", lambda x: x[:, :, :0]),
    r"slots: got shape \[2\], expected \[B\] = \[3\]": replaced("slots", lambda x: x[:2]),
    r"position_ids: got shape \[2\], expected \[T\] = \[3\]": replaced("position_ids", lambda x: x[:2]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message: str) -> None:
    arrays = make_inputs(ERRORS)
    BAD[message](arrays)
    with pytest.raises(Exception, match="HoldQueries: " + message):
        run_op("HoldQueries", arrays)
