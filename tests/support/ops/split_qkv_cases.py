"""The one table of SplitQkv cases, which every implementation runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call; half: dimensions that turn with another one, 0 without rotation."""

    name: str
    tokens: int = 3
    query_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    value_dim: int = 64
    half: int = 32
    norm: bool = False
    epsilon: float | None = None
    magnitude: float = 1.0

    @property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes; the default is left out so that it is tested."""
        sizes = {name: getattr(self, name) for name in ("query_heads", "kv_heads", "head_dim", "value_dim")}
        return sizes if self.epsilon is None else {**sizes, "epsilon": self.epsilon}


CASES = [
    Case(name="rotated"),
    Case(name="one_token", tokens=1),
    Case(name="no_token", tokens=0),
    Case(name="many_tokens", tokens=333),
    Case(name="plain", half=0),
    Case(name="normalised", half=0, norm=True),
    Case(name="both", norm=True, tokens=17),
    Case(name="epsilon_counts", norm=True, epsilon=0.5, magnitude=0.1),
    Case(name="default_epsilon_counts", norm=True, magnitude=1e-3),
    Case(name="partial", half=13),
    Case(name="partial_both", half=24, norm=True, head_dim=80, value_dim=80),
    Case(name="odd_sizes", query_heads=3, kv_heads=1, head_dim=7, value_dim=5, half=3, norm=True),
    Case(name="smallest", query_heads=1, kv_heads=1, head_dim=1, value_dim=1, half=0, norm=True),
    Case(name="values_wider", value_dim=96),
    Case(name="parallel", tokens=100, query_heads=32, kv_heads=8, head_dim=128, value_dim=128, half=64, norm=True),
]


def make_inputs(case: Case) -> dict[str, np.ndarray]:
    """Random projections; angles of every size."""
    rng = np.random.default_rng(0)
    width = (case.query_heads + case.kv_heads) * case.head_dim + case.kv_heads * case.value_dim
    arrays = {"packed": (rng.standard_normal((1, case.tokens, width)) * case.magnitude).astype(np.float32)}
    if case.half:
        angles = rng.uniform(-10, 10, (1, case.tokens, case.half))
        arrays |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    if case.norm:
        arrays["query_norm"] = rng.standard_normal(case.head_dim).astype(np.float32)
        arrays["key_norm"] = rng.standard_normal(case.head_dim).astype(np.float32)
    return arrays
