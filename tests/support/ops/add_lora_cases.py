"""Cases of AddLora, the same for every implementation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from enginewright.plugins.ops.add_lora import ADD_LORA


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call: index by token, and the sizes of the segments."""

    name: str
    index: tuple[int, ...]
    segments: tuple[int, ...]
    size: int
    rank: int
    capacity: int = 4
    layers: int = 2
    layer: int = 1

    @property
    def attributes(self) -> dict[str, int]:
        """The node's attributes."""
        return {"layer": self.layer}

    @property
    def without(self) -> np.ndarray:
        """Which tokens have no adapter."""
        return np.array([not 0 < entry < self.capacity for entry in self.index], bool)


CASES = (
    Case(name="one", index=(1,), segments=(1,), size=1, rank=1),
    Case(name="none", index=(0, 0, 0), segments=(9,), size=7, rank=2),
    Case(name="no_tokens", index=(), segments=(8, 8), size=8, rank=4),
    Case(name="outside", index=(4, -1, 3), segments=(16,), size=16, rank=8),
    Case(name="odd", index=(3, 0, 1, 1, 2, 3, 0), segments=(17, 5, 6), size=33, rank=3),
    Case(name="qkv", index=(1, 2, 0, 3) * 4, segments=(64, 32, 32), size=96, rank=16, layers=1, layer=0),
    Case(name="gate_up", index=(2,) * 37, segments=(160, 160), size=64, rank=8),
    Case(name="many", index=(1,) * 20 + (0,) * 3 + (2,) * 41, segments=(1300,), size=200, rank=13),
)


def make_inputs(case: Case) -> dict[str, np.ndarray]:
    """Random tensors, always the same ones for a case; what no token may read is NaN."""
    random = np.random.default_rng(case.size + case.rank)
    tokens, outputs = len(case.index), sum(case.segments)
    arrays = {
        "base": random.standard_normal((1, tokens, outputs)).astype(np.float32),
        "x": random.standard_normal((1, tokens, case.size)).astype(np.float32),
        "index": np.array(case.index, np.int32),
        "scale": random.uniform(-1, 1, tokens).astype(np.float32),
    }
    for number, width in enumerate(case.segments):
        a = random.standard_normal((case.capacity, case.layers, case.rank, case.size))
        b = random.standard_normal((case.capacity, case.layers, case.rank, width)) / case.rank
        arrays[f"factors.{2 * number}"], arrays[f"factors.{2 * number + 1}"] = _only_read(case, a), _only_read(case, b)
    return arrays


def expected(case: Case, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """What the oracle makes of the tensors."""
    result: np.ndarray = ADD_LORA.load_oracle()(*arrays.values(), **case.attributes)
    return result


def _only_read(case: Case, factor: np.ndarray) -> np.ndarray:
    """The factor as float16, with NaN wherever no token may read it."""
    others = [layer for layer in range(case.layers) if layer != case.layer]
    factor[0], factor[:, others] = np.nan, np.nan
    return factor.astype(np.float16)
