"""Calls of ExpertMixture: one row to hundreds, experts without rows and twice in a list, all gates, odd sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from enginewright.exporters.weights.panels import pack_panels
from enginewright.plugins.oracles.block_linear import expert_mixture

CODES = {"bits": 4, "block": 32, "scale_bits": 16, "minima": 0}


@dataclass(frozen=True)
class Case:
    """A call; created by CASES.

    tokens, columns, inner: sizes.
    experts: how many there are.
    chosen: of each token.
    gate: number of the activation.
    up, down: what is not as in CODES.
    extra: other attributes, and "bias" for both biases.
    """

    tokens: int
    columns: int
    inner: int
    experts: int
    chosen: int
    gate: int = 1
    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For pytest."""
        words = [f"{key}={value}" for part in (self.up, self.down, self.extra) for key, value in part.items()]
        sizes = f"{self.tokens}x{self.columns}x{self.inner}"
        return "-".join([sizes, f"{self.chosen}of{self.experts}", f"gate{self.gate}", *words])

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the node."""
        sizes = {"columns": self.columns, "inner": self.inner, "gate": self.gate}
        codes = {
            f"{name}_{key}": {**CODES, **own}[key]
            for name, own in (("up", self.up), ("down", self.down))
            for key in CODES
        }
        return {**sizes, **codes, **{key: value for key, value in self.extra.items() if key != "bias"}}


CLAMPED = {"slope": 1.702, "limit": 0.75}
CASES = [
    Case(1, 96, 48, 6, 2),
    Case(0, 64, 32, 3, 2),
    Case(3, 33, 16, 5, 1, up={"bits": 8}, down={"bits": 6, "minima": 1}),
    Case(7, 70, 80, 4, 3, gate=2, up={"bits": 5, "scale_bits": 32}, down={"block": 16}),
    Case(4, 64, 48, 3, 2, gate=3, up={"minima": 1, "block": 64}, extra={"bias": True}),
    Case(9, 64, 32, 2, 2, gate=4, extra={"bias": True, **CLAMPED}),
    Case(5, 96, 64, 16, 4, up={"bits": 3}, down={"bits": 2}, extra={"bias": True}),
    Case(6, 64, 48, 3, 2, gate=4, extra={"exact": 1, **CLAMPED}),
    Case(3, 50, 32, 4, 2, up={"minima": 1}, extra={"exact": 1, "bias": True}),
    Case(60, 128, 96, 5, 2),
    Case(300, 256, 128, 8, 4),
]
LONG = Case(2100, 32, 16, 3, 2)
"""More visits than one round of a call has."""


def make_inputs(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Random activations, experts, factors and codes; the last of several experts has no row, and one row the first one twice."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, max(case.experts - 1, 1), (case.tokens, case.chosen)).astype(np.int64)
    if case.tokens and case.chosen > 1:
        ids[0, :2] = 0
    arrays = {
        "x": rng.normal(0, 1, (case.tokens, case.columns)).astype(np.float32),
        "ids": ids,
        "weights": rng.uniform(-0.2, 1, ids.shape).astype(np.float32),
        "up": _stack(rng, case.experts, (2 * case.inner, case.columns), {**CODES, **case.up}),
        "down": _stack(rng, case.experts, (case.columns, case.inner), {**CODES, **case.down}),
    }
    if "bias" in case.extra:
        arrays["up_bias"] = rng.normal(0, 1, (case.experts, 2 * case.inner)).astype(np.float32)
        arrays["down_bias"] = rng.normal(0, 1, (case.experts, case.columns)).astype(np.float32)
    return arrays


def _stack(rng: np.random.Generator, experts: int, shape: tuple[int, int], codes: dict[str, int]) -> np.ndarray:
    """Random matrices in panels, [experts, panels, bytes]."""
    bits, block, blocks = codes["bits"], codes["block"], -(-shape[1] // codes["block"])
    kind = np.float16 if codes["scale_bits"] == 16 else np.float32
    made = []
    for _ in range(experts):
        scales = rng.uniform(-0.6, 0.6, (shape[0], blocks)) / (1 << bits)
        lowest = rng.uniform(-0.3, 0.3, scales.shape).astype(kind) if codes["minima"] else None
        numbers = rng.integers(0, 1 << bits, shape).astype(np.uint8)
        made.append(pack_panels(numbers, scales.astype(kind), lowest, bits, block))
    return np.stack(made)


def expected(case: Case, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The oracle's result."""
    return expert_mixture(**arrays, **case.attributes)
