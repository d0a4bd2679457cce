"""Calls of BlockLookup: all bits and blocks, bfloat16, odd sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.support.ops import block_linear_cases


@dataclass(frozen=True)
class Case:
    """A call; created by CASES.

    extra: attributes besides those of sizes.
    """

    rows: int
    columns: int
    bits: int
    block: int
    extra: dict[str, Any] = field(default_factory=dict)
    tokens: int = 7

    @property
    def name(self) -> str:
        """For pytest."""
        words = [f"{key}={value}" for key, value in self.extra.items()]
        return "-".join([f"{self.tokens}of{self.rows}x{self.columns}", f"{self.bits}b{self.block}", *words])

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the node."""
        sizes = {"rows": self.rows, "columns": self.columns}
        return {**sizes, "bits": self.bits, "block": self.block, **self.extra}


CASES = [
    *(Case(40, 96, bits, 32) for bits in (2, 3, 4, 5, 6, 8)),
    *(Case(33, 70, bits, 16, {"minima": 1}) for bits in (2, 3, 4, 5, 6, 8)),
    Case(100, 200, 4, 128, {"scale_bits": 32}),
    Case(20, 200, 4, 128, {"minima": 2}),
    Case(20, 512, 4, 32, {"scale_bits": 8, "minima": 1}),
    Case(33, 300, 6, 16, {"scale_bits": 8}),
    Case(33, 70, 8, 16, {"minima": 2, "scale_bits": 32}),
    Case(1, 1, 8, 32),
    Case(17, 33, 5, 64, {"scale_bits": 32, "minima": 1}, tokens=0),
    *(Case(33, columns, 16, 32) for columns in (1, 70, 96)),
]


def make_inputs(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """A random matrix in panels, and rows to look up."""
    linear = block_linear_cases.Case(1, case.columns, case.rows, case.bits, case.block, case.extra)
    ids = np.random.default_rng(seed).integers(0, case.rows, (1, case.tokens))
    return {"panels": block_linear_cases.make_inputs(linear, seed)["panels"], "ids": ids.astype(np.int64)}
