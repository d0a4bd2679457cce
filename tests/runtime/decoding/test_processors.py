"""Tests of logits processors that misbehave: their own request ends with what they raised, and the others go on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from enginewright.runtime.errors import RequestError
from enginewright.runtime.llm import LLM
from enginewright.runtime.requests.logits_processor import Floats, Ints
from enginewright.runtime.requests.sampling import Sampling
from tests.runtime.decoding.test_multi_token import guessing, right
from tests.support.runtime.toy_model import greedy, make_llm

LONG = Sampling(max_tokens=12, ignore_eos=True)


class Failing:
    """A processor that raises, or writes where it must not, at its third token.

    accepts: whether `accept` raises.
    """

    def __init__(self, accepts: bool) -> None:
        self._accepts, self._tokens = accepts, 0

    def process(self, logits: Floats, tokens: Ints) -> None:
        """Write to the tokens."""
        if not self._accepts and self._tokens == 2:
            tokens[0] = 7

    def accept(self, token: int) -> None:
        """Count the tokens."""
        self._tokens += 1
        if self._accepts and self._tokens == 3:
            raise KeyError("mine")

    def rewind(self, count: int) -> None:
        """Count back."""
        self._tokens -= count


@pytest.mark.parametrize("open_llm", [make_llm, lambda: guessing(right, verify=True)])
@pytest.mark.parametrize(("accepts", "message"), [(True, r"KeyError\('mine'\)"), (False, "read-only")])
def test_a_processor_that_raises_midway_ends_its_own_request(
    open_llm: Callable[[], LLM], accepts: bool, message: str
) -> None:
    with open_llm() as llm:
        other, bad = llm.submit_all(
            [[5, 6], [3, 4]],
            [LONG, Sampling(max_tokens=12, ignore_eos=True, logits_processors={"it": lambda *_: Failing(accepts)})],
        )
        with pytest.raises(RequestError, match=rf"got an error from a processor \(.*{message}"):
            bad.result()
        assert list(other.result().token_ids) == greedy([5, 6], 12)
        assert bad._request.generated == greedy([3, 4], 2) and np.array_equal(bad._request.tokens[:2], [3, 4])


def test_switching_off_a_processor_whose_name_is_misspelt_is_refused() -> None:
    with make_llm() as llm:
        off = Sampling(max_tokens=2, logits_processors={"suppress_tokens": None})
        assert list(llm.generate([5, 6], off)[0].token_ids) == greedy([5, 6], 2), (
            "the model has none, which is no error"
        )
        with pytest.raises(
            RequestError, match=r"logits_processors: got 'suppres_tokens', expected one that is installed"
        ):
            llm.generate([5, 6], Sampling(logits_processors={"suppres_tokens": None}))
