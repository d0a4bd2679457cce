"""The one table of TokenScores cases, their inputs and the oracle's answer; every implementation runs all it supports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from enginewright.plugins.ops.token_scores import TOKEN_SCORES
from enginewright.plugins.oracles.decoded_keys import decoded_keys
from enginewright.plugins.oracles.window_probabilities import stored_keys
from tests.support.ops.attention_inputs import at_layer
from tests.support.ops.policy_caches import lens_of, make_cache, normal
from tests.support.ops.record_caches import BITS, RecordCase, make_records

TOLERANCE = {"rtol": 3e-5, "atol": 1e-7}
"""Sums of up to a few thousand float32 products against float64: an exponent may be off by 1e-5."""


@dataclass(frozen=True, kw_only=True)
class Case(RecordCase):
    """One call: the tokens that each row stores, and how many were evicted before."""

    held: tuple[int, ...] = (300,)
    evicted: int = 0
    window: int = 8
    entries: int = 11
    scope: int = 0
    group: int = 0
    redundancy: int = 0
    threshold: float = 0.5

    @property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes."""
        return self.attributes_of(TOKEN_SCORES)


MODES = tuple((scope, group) for scope in (0, 1) for group in (0, 1, 2))
CASES = (
    *(Case(name=f"scope_{s}_group_{g}", held=(300, 9, 8, 0, 128), scope=s, group=g) for s, g in MODES),
    *(
        Case(name=f"sinks_{s}_{g}", held=(140, 129), scope=s, group=g, sinks=True, softcap=20.0, evicted=77)
        for s, g in MODES
    ),
    *(
        Case(name=f"group_of_{size}", held=(200, 40), query_heads=2 * size, scope=size % 2, group=size % 3)
        for size in (1, 2, 3, 5, 8, 17)
    ),
    Case(name="edges", held=tuple(8 + n for n in (1, 2, 119, 120, 121, 248)), redundancy=1, clusters=5),
    Case(name="prompt", held=(400,), window=33, entries=40, scope=1, group=1, evicted=3),
    Case(name="one_query", held=(70, 1, 2), window=1, entries=1, scope=1, group=1),
    Case(name="no_rows", held=(), redundancy=1),
    Case(
        name="lens_per_head", held=(500, 150, 90), held_skew=70, query_heads=6, kv_heads=3, other_heads=2, redundancy=1
    ),
    Case(name="float_cache", held=(300, 20), kv_bits=32, redundancy=1, clusters=4, scope=1),
    *(
        Case(name=f"dim_{dim}", held=(150,), dim=dim, value_dim=3, redundancy=1, clusters=3)
        for dim in (1, 16, 33, 80, 128, 256)
    ),
    Case(name="redundant", held=(640, 130, 17), clusters=7, redundancy=1),
    Case(name="like_tokens_far_back", held=(700, 385), clusters=90, redundancy=1),
    Case(name="few_tokens", held=(1, 2, 3, 7, 8, 9, 16, 17), window=1, entries=1, clusters=3, redundancy=1),
    Case(name="redundant_causal", held=(260,), clusters=1, redundancy=1, scope=1, group=2),
    Case(name="nothing_redundant", held=(300, 140), redundancy=1, threshold=0.9),
    Case(name="small_keys", held=(60,), clusters=4, redundancy=1, magnitude=1e-3),
    Case(name="large_logits", held=(400,), magnitude=4.0, scope=1, group=1),
    *(
        Case(name=f"records_k{k}_v{v}", held=(300, 128, 9, 8, 0, 700), k_bits=k, v_bits=v, clusters=5, redundancy=1)
        for k, v in BITS
    ),
    *(
        Case(name=f"records_dim_{dim}", held=(383, 256), k_bits=4, v_bits=2, dim=dim, scope=1, group=1)
        for dim in (16, 32, 128, 512)
    ),
    Case(
        name="late_records",
        held=(511, 384, 130),
        held_skew=131,
        k_bits=4,
        v_bits=2,
        exact_tiles=4,
        late=2,
        sinks=True,
        other_heads=1,
        redundancy=1,
        scope=1,
        group=2,
    ),
    Case(name="records_edges", held=tuple(128 * n + i for n in (1, 2, 3) for i in (-1, 0, 1)), k_bits=2, v_bits=2),
)


def make_inputs(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs; ring entries that no window has are NaN.

    Raises:
        AssertionError: a cosine is so near to the threshold that rounding decides.
    """
    rng = np.random.default_rng(seed)
    batch, lens = len(case.held), lens_of(case, list(case.held))
    random = normal(case, rng)
    slots = rng.permutation(batch + 2)[:batch].astype(np.int32)
    last = np.array([held - 1 + case.evicted for held in case.held], np.int64)
    ring = np.full((batch + 2, case.query_heads, case.entries, case.dim), np.nan, np.float32)
    for row in range(batch):
        if case.held[row] > case.window:
            entries = np.arange(last[row] - case.window + 1, last[row] + 1) % case.entries
            ring[slots[row]][:, entries] = random(case.query_heads, case.window, case.dim)
    cache = make_records(case, rng, lens, slots) if case.k_bits else make_cache(case, rng, lens)
    arrays = {
        "ring": ring,
        "tiles": cache.pop("tiles"),
        "slots": slots,
        "kv_lens": at_layer(case, lens.astype(np.int32), 7),
        "tile_table": cache.pop("tile_table"),
        "last_positions": last,
        **cache,
    }
    if case.redundancy:
        expect_decided(case, arrays, lens)
    return arrays | ({"sinks": random(case.query_heads)} if case.sinks else {})


def expect_decided(case: Case, arrays: dict[str, np.ndarray], lens: np.ndarray) -> None:
    """Check that no cosine of two keys is so near to the threshold that rounding decides."""
    for row, head in np.ndindex(lens.shape):
        keys = _keys(case, arrays, row, head, int(lens[row, head]))
        units = keys / (np.linalg.norm(keys, axis=1, keepdims=True) + 1e-8)
        assert np.abs(units @ units.T - case.threshold).min(initial=1) > 1e-5, f"{case.name}: choose another seed"


def _keys(case: Case, arrays: dict[str, np.ndarray], row: int, head: int, stored: int) -> np.ndarray:
    ids = arrays["tile_table"][case.layer, row, head]
    if not case.k_bits:
        return stored_keys(arrays["tiles"], ids, stored, case.dim, case.kv_bits)
    if not stored:
        return np.zeros((0, case.dim))
    encoded = int(arrays["encoded_lens"][0, case.layer, row, head])
    own = arrays["exact"][arrays["slots"][row], head]
    return decoded_keys(arrays["tiles"], own, ids, stored, encoded, (case.k_bits, case.v_bits))


def expected(case: Case, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The oracle's answer."""
    importance, redundancy = TOKEN_SCORES.load_oracle()(**arrays, **case.attributes)
    return importance, redundancy


def check(case: Case, got: list[np.ndarray], wanted: tuple[np.ndarray, np.ndarray]) -> None:
    """Compare both outputs; what is 0 is so exactly."""
    for mine, its in zip(got, wanted, strict=True):
        assert (mine.dtype, mine.shape) == (its.dtype, its.shape)
        np.testing.assert_array_equal(mine == 0, its == 0)
        np.testing.assert_allclose(mine, its, **TOLERANCE)
