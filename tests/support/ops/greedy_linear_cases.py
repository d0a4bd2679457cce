"""Calls of GreedyLinear: odd sizes, many panels, with and without what is optional."""

from __future__ import annotations

from typing import Any

import numpy as np

from enginewright.plugins.oracles.block_linear import greedy_linear
from tests.support.ops import block_linear_cases


class Case(block_linear_cases.Case):
    """A call; created by CASES."""

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the node."""
        return {name: value for name, value in super().attributes.items() if name != "width"}


CASES = [
    Case(1, 64, 33, 4, 32),
    Case(5, 96, 1000, 4, 32, {"bias": True, "norm": True, "epsilon": 1e-5}),
    Case(13, 70, 5000, 8, 16, {"minima": 1}),
    Case(7, 96, 48, 6, 96, {"scale_bits": 32, "exact": 1}),
    Case(0, 64, 32, 4, 32),
]


def make_inputs(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of a call that writes the logits."""
    arrays = block_linear_cases.make_inputs(case, seed)
    order = ("x", "panels", "wanted", "bias", "norm")
    arrays["wanted"] = np.ones(1, np.int64)
    return {name: arrays[name] for name in order if name in arrays}


def expected(case: Case, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The oracle's logits and tokens."""
    return greedy_linear(**arrays, **case.attributes)
