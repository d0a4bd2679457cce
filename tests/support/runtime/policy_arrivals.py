"""Random requests to a toy engine with a cache policy, and the checks that each got what it gets alone and left nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from enginewright.runtime.cache.policy_tables import PolicyTables
from enginewright.runtime.llm import LLM
from enginewright.runtime.requests.request import Generation
from tests.support.runtime.evicting_model import check_pools, greedy, reference
from tests.support.runtime.sample_policies import Seen
from tests.support.runtime.simulated_requests import Arrival, Kept, check_tiles
from tests.support.runtime.toy_session import VOCAB

A, B = (np.random.default_rng(i).integers(0, VOCAB, 80).tolist() for i in range(2))
ARRIVALS = st.lists(
    st.builds(
        Arrival,
        prompt=st.builds(lambda text, n: text[:n], st.sampled_from([A, B, A[:20] + B]), st.integers(1, 50)),
        at=st.integers(0, 12),
        new=st.integers(1, 30),
        score=st.sampled_from([False, False, False, True]),
        cancel=st.one_of(st.none(), st.none(), st.integers(0, 20)),
    ),
    min_size=1,
    max_size=6,
)


def check_seen(
    requests: Sequence[Generation | Kept], arrivals: Sequence[Arrival], windows: Sequence[int], seen: Seen
) -> None:
    """Check that every request got the results of what the policy lets it see, as far as it came."""
    for request, each in zip(requests, arrivals, strict=True):
        assert request.done.is_set()
        if isinstance(request, Generation):
            assert request.completion is not None
            assert len(request.generated) == each.new or request.completion.finish_reason == "cancelled"
            assert request.generated == greedy(each.prompt, len(request.generated), windows, seen)
        elif request.error is None:
            expected = [reference(each.prompt[: i + 1], 0, windows, seen) for i in range(len(each.prompt))]
            np.testing.assert_array_equal(request.logits, expected)


def check_empty(llm: LLM) -> None:
    """Check that nothing runs, and that no row or prefix has a tile."""
    tables = llm.loop.scheduler.tables
    assert isinstance(tables, PolicyTables)
    check_tiles(llm)
    check_pools(tables)
    assert not any(pool._uses.any() or pool.gone.any() or pool.count.any() for pool in tables._pools)
