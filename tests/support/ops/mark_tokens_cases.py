"""The one table of MarkTokens cases, their inputs and the oracle's answer; every implementation runs all it supports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from enginewright.plugins.ops.mark_tokens import MARK_TOKENS
from enginewright.plugins.ops.tiles import TILE_TOKENS
from tests.support.ops.attention_inputs import at_layer
from tests.support.ops.policy_caches import CacheCase, lens_of, make_cache, normal

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Case(CacheCase):
    """One call: tokens held and new tokens of each row, and how many were evicted before."""

    rows: tuple[tuple[int, int], ...]
    kind: int = 0
    alpha: float | None = None
    evicted: int = 5

    @property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes."""
        return self.attributes_of(MARK_TOKENS, alpha=1e-4 if self.alpha is None else self.alpha)

    @property
    def channels(self) -> int:
        """Numbers of a token."""
        return 2 if self.kind == 1 else 1


EDGES = tuple((held, 1) for held in (0, 1, 126, 127, 128, 129, 600))
CASES = (
    *(Case(name=f"decode_{kind}", rows=EDGES, kind=kind, alpha=0.004) for kind in (0, 1, 2)),
    *(Case(name=f"prompt_{kind}", rows=((0, 150),), kind=kind, alpha=0.01) for kind in (0, 1, 2)),
    *(
        Case(name=f"mixed_{kind}", rows=((300, 1), (0, 40), (5, 0), (120, 9)), kind=kind, alpha=0.02, held_skew=3)
        for kind in (0, 1, 2)
    ),
    *(
        Case(name=f"sinks_{kind}", rows=((200, 3), (0, 7)), kind=kind, sinks=True, softcap=20.0, alpha=0.01)
        for kind in (0, 1, 2)
    ),
    *(
        Case(name=f"group_{size}", rows=((130, 5),), query_heads=2 * size, kind=size % 2, alpha=0.02)
        for size in (1, 2, 3, 7, 8, 17)
    ),
    Case(name="float_cache", rows=((140, 6), (3, 1)), kv_bits=32),
    Case(name="many_heads_given", rows=((140, 6), (3, 1)), kind=2, query_heads=260, kv_heads=130, dim=1, held_skew=1),
    Case(name="fewer_heads_than_other_layers", rows=((140, 2), (3, 5)), other_heads=3, kind=1, alpha=0.05),
    *(Case(name=f"dim_{dim}", rows=((20, 3),), dim=dim, value_dim=5) for dim in (1, 33, 128, 256)),
    Case(name="no_rows", rows=()),
    Case(name="no_tokens", rows=((7, 0),)),
    Case(name="default_alpha", rows=((900, 1),), kind=1),
)


def make_inputs(case: Case, seed: int = 0) -> Arrays:
    """Random inputs; marks are small whole numbers, and last hits are before the new tokens."""
    rng = np.random.default_rng(seed)
    held, new = [old for old, _ in case.rows], [count for _, count in case.rows]
    lens, random = lens_of(case, held), normal(case, rng)
    total = lens + np.array(new, int).reshape(-1, 1)
    cache = make_cache(case, rng, total)
    positions = [np.arange(old, old + count) + case.evicted for old, count in case.rows]
    marks = rng.integers(0, 5, (len(cache["tiles"]), case.channels, TILE_TOKENS)).astype(np.float32)
    arrays = {
        "query": random(sum(new), case.query_heads, case.dim),
        "tiles": cache["tiles"],
        "query_starts": np.cumsum([0, *new]).astype(np.int32),
        "kv_lens": at_layer(case, lens.astype(np.int32), 7),
        "tile_table": cache["tile_table"],
        "position_ids": np.concatenate([np.zeros(0, np.int64), *positions]).astype(np.int64),
        "marks": marks,
    }
    arrays |= {"values": random(sum(new), case.kv_heads)} if case.kind == 2 else {}
    return arrays | ({"sinks": random(case.query_heads)} if case.sinks else {})


def expected(case: Case, arrays: Arrays) -> np.ndarray:
    """The oracle's answer."""
    marks: np.ndarray = MARK_TOKENS.load_oracle()(**arrays, **case.attributes)
    return marks


def check(case: Case, got: np.ndarray, wanted: np.ndarray) -> None:
    """Compare masses to the rounding of a sum of probabilities; hits and intervals are whole numbers, and values are as given."""
    if case.kind in (1, 2):
        np.testing.assert_array_equal(got, wanted)
    else:
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-6)
