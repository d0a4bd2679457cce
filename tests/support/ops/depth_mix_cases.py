"""The one table of DepthMix cases, their inputs and the oracle's answer; every implementation runs all it supports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from enginewright.plugins.ops.depth_mix import DEPTH_MIX


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call; magnitude: of queries and keys, so that softmax goes from even to one-sided."""

    name: str
    tokens: int = 3
    query_heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    value_dim: int = 64
    sources: int = 2
    magnitude: float = 1.0
    scale: float | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes."""
        return {"scale": self.dim**-0.5 if self.scale is None else self.scale}

    @property
    def tolerance(self) -> float:
        """Rounding of float32 scores near 1; one of magnitude 30 * 30 * sqrt(64) is uncertain by 1e-3 of a weight."""
        return 3e-6 if self.magnitude <= 1 else 3e-3


CASES = [
    Case(name="usual"),
    Case(name="one_token", tokens=1),
    Case(name="no_token", tokens=0),
    Case(name="one_source", sources=1),
    Case(name="many_sources", sources=23),
    Case(name="no_source", sources=0),
    Case(name="shape_of_half_a_billion", tokens=1, query_heads=14, kv_heads=2),
    Case(name="no_groups", query_heads=2),
    Case(name="one_group", query_heads=7, kv_heads=1),
    Case(name="odd_sizes", tokens=17, query_heads=9, kv_heads=3, dim=7, value_dim=5),
    Case(name="smallest", query_heads=1, kv_heads=1, dim=1, value_dim=1),
    Case(name="values_wider", dim=24, value_dim=104),
    Case(name="another_scale", scale=0.9),
    Case(name="negative_scale", scale=-0.5),
    Case(name="even", magnitude=0.0),
    Case(name="one_sided", magnitude=30.0, sources=5),
    Case(name="parallel", tokens=333, query_heads=32, kv_heads=8, dim=128, value_dim=128, sources=3),
]


def make_inputs(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Random heads."""
    rng = np.random.default_rng(seed)

    def normal(heads: int, size: int, magnitude: float) -> np.ndarray:
        return (rng.standard_normal((case.tokens, heads, size)) * magnitude).astype(np.float32)

    arrays = {
        "query": normal(case.query_heads, case.dim, case.magnitude),
        "key": normal(case.kv_heads, case.dim, case.magnitude),
        "value": normal(case.kv_heads, case.value_dim, 1.0),
    }
    for source in range(case.sources):
        arrays[f"sources.{2 * source}"] = normal(case.kv_heads, case.dim, case.magnitude)
        arrays[f"sources.{2 * source + 1}"] = normal(case.kv_heads, case.value_dim, 1.0)
    return arrays


def expected(case: Case, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The oracle's answer."""
    sources = [x for name, x in arrays.items() if name.startswith("sources.")]
    operands = {name: x for name, x in arrays.items() if not name.startswith("sources.")}
    mixed: np.ndarray = DEPTH_MIX.load_oracle()(**operands, sources=sources, **case.attributes)
    return mixed
