"""Tests of the step loop against functions of its users that raise, or that wait for the loop on its own thread."""

from __future__ import annotations

import pytest

from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.completion import Completion, Event, Token
from enginewright.runtime.requests.sampling import Sampling
from tests.support.runtime.toy_model import greedy, make_llm


@pytest.mark.parametrize("at", [1, 3])
def test_an_owner_whose_function_raises_loses_its_own_request(at: int) -> None:
    """At its first token, or at the Completion, which is the third event."""
    got: list[Event] = []

    def take(event: Event) -> None:
        got.append(event)
        if len(got) == at:
            raise KeyError("the owner's own")

    with make_llm(eos=(), rows=3) as llm:
        others = llm.submit_all([[5, 6], [7]], Sampling(max_tokens=12))
        bad = llm.submit([3, 4], Sampling(max_tokens=2), on_event=take)
        with pytest.raises(KeyError, match="the owner's own"):
            bad.result()
        assert [other.result().token_ids for other in others] == [tuple(greedy(p, 12)) for p in ([5, 6], [7])]
        assert len(got) == at and isinstance(got[-1], Token if at == 1 else Completion)


def test_waiting_for_the_loop_on_its_own_thread_is_refused() -> None:
    refused: list[str] = []

    def take(_: Event) -> None:
        with pytest.raises(RequestError) as caught:
            llm.loop.between_steps(list)
        refused.append(str(caught.value))

    with make_llm(eos=()) as llm:
        assert len(llm.submit([1], Sampling(max_tokens=2), on_event=take).result().token_ids) == 2
    assert len(refused) == 3 and "on its own thread; call it from another thread" in refused[0]
