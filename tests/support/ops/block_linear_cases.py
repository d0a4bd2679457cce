"""Calls of BlockLinear: all bits and blocks, bfloat16, odd sizes, with and without what is optional."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from enginewright.exporters.weights.panels import pack_bfloat16, pack_panels
from enginewright.plugins.ops.block_linear import FACTOR_COLUMNS, NUMBER_BITS, OFFSETS
from enginewright.plugins.oracles.block_linear import block_linear


@dataclass(frozen=True)
class Case:
    """A call; created by CASES.

    extra: attributes besides those of sizes, "bias", "residual" and "norm" for these inputs, and "heads" for an x by heads.
    """

    tokens: int
    columns: int
    rows: int
    bits: int
    block: int
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For pytest."""
        words = [f"{key}={value}" for key, value in self.extra.items()]
        return "-".join([f"{self.tokens}x{self.columns}x{self.rows}", f"{self.bits}b{self.block}", *words])

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the node."""
        extra = {key: value for key, value in self.extra.items() if key not in ("bias", "residual", "norm", "heads")}
        width = self.rows // 2 if extra.get("gate") else self.rows
        sizes = {"columns": self.columns, "rows": self.rows, "width": width}
        return {**sizes, "bits": self.bits, "block": self.block, **extra}


CASES = [
    *(Case(3, 96, 48, bits, 32) for bits in (2, 3, 4, 5, 6, 8)),
    *(Case(2, 96, 40, bits, 16, {"minima": 1}) for bits in (2, 3, 4, 5, 6, 8)),
    *(Case(5, 256, 33, bits, block) for bits, block in ((4, 64), (4, 128), (8, 256), (3, 128))),
    Case(0, 64, 32, 4, 32),
    Case(1, 1, 1, 4, 32),
    Case(1, 31, 15, 8, 16),
    Case(7, 33, 17, 5, 32, {"scale_bits": 32, "minima": 1}),
    Case(13, 200, 100, 4, 128),  # the last block is not whole
    Case(5, 256, 33, 4, 128, {"minima": 2}),
    Case(3, 100, 40, 3, 16, {"minima": 2}),
    Case(7, 70, 50, 8, 32, {"minima": 2, "scale_bits": 32}),
    Case(6, 100, 50, 4, 64, {"minima": 2, "exact": 1}),
    Case(5, 512, 40, 4, 32, {"scale_bits": 8, "minima": 1}),
    Case(1, 256, 33, 6, 16, {"scale_bits": 8}),
    Case(4, 300, 20, 3, 16, {"scale_bits": 8, "minima": 1}),
    Case(13, 800, 50, 5, 128, {"scale_bits": 8}),
    Case(6, 290, 50, 2, 16, {"scale_bits": 8, "minima": 1, "exact": 1}),
    Case(3, 520, 50, 8, 256, {"scale_bits": 8, "exact": 1}),
    Case(6, 130, 64, 6, 160, {"scale_bits": 32}),
    Case(11, 96, 64, 4, 32, {"bias": True, "residual": True}),
    Case(4, 96, 64, 4, 32, {"gate": 1, "bias": True, "residual": True}),
    Case(9, 64, 96, 8, 64, {"gate": 2}),
    Case(3, 64, 64, 4, 16, {"gate": 3}),
    Case(8, 70, 50, 4, 32, {"norm": True, "epsilon": 1e-5}),
    Case(5, 96, 50, 4, 32, {"heads": 3, "bias": True}),
    *(Case(7, 96, 50, bits, 32, {"exact": 1}) for bits in (2, 3, 4, 5, 6, 8)),
    *(Case(tokens, 90, 50, 16, 32, {"exact": exact}) for tokens in (1, 2, 7, 29) for exact in (0, 1)),
    *(Case(3, columns, 17, 16, 32) for columns in (1, 31, 33)),
    Case(0, 64, 32, 16, 32),
    Case(5, 96, 64, 16, 32, {"exact": 1, "norm": True, "gate": 1, "bias": True, "residual": True}),
    Case(13, 96, 64, 16, 32, {"norm": True, "gate": 2, "bias": True, "residual": True}),
    Case(300, 512, 160, 16, 32),
    Case(300, 512, 160, 16, 32, {"exact": 1}),
    Case(12, 100, 64, 4, 16, {"exact": 1, "minima": 1, "norm": True, "gate": 1}),
    Case(40, 1024, 160, 4, 32),
]


def make_inputs(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Random activations, and codes, scales, and minima or zero points, or numbers of bfloat16."""
    rng = np.random.default_rng(seed)
    panels = _pack_numbers(case, rng) if case.bits == NUMBER_BITS else _pack_codes(case, rng)
    arrays = {"x": rng.normal(0, 1, x_shape(case)).astype(np.float32), "panels": panels}
    if "bias" in case.extra:
        arrays["bias"] = rng.normal(0, 1, case.rows).astype(np.float32)
    if "residual" in case.extra:
        arrays["residual"] = rng.normal(0, 1, (1, case.tokens, case.attributes["width"])).astype(np.float32)
    if "norm" in case.extra:
        arrays["norm"] = rng.uniform(0.5, 2, case.columns).astype(np.float32)
    return arrays


def _pack_numbers(case: Case, rng: np.random.Generator) -> np.ndarray:
    return pack_bfloat16(rng.normal(0, 0.1, (case.rows, case.columns)).astype(np.float32))


def _pack_codes(case: Case, rng: np.random.Generator) -> np.ndarray:
    blocks = -(-case.columns // case.block)
    codes = rng.integers(0, 1 << case.bits, (case.rows, case.columns)).astype(np.uint8)
    half = case.attributes.get("scale_bits", 16) == 16
    scales = rng.uniform(-0.02, 0.02, (case.rows, blocks)).astype(np.float16 if half else np.float32)
    minima = rng.uniform(-0.1, 0.1, scales.shape).astype(scales.dtype) if case.attributes.get("minima") else None
    if case.attributes.get("minima") == OFFSETS["zero_points"]:
        minima = rng.integers(0, 1 << case.bits, scales.shape).astype(scales.dtype)
    factors = None
    if case.attributes.get("scale_bits") == 8:
        scales = rng.integers(-128, 128, scales.shape).astype(np.int8)
        minima = None if minima is None else rng.integers(-128, 128, scales.shape).astype(np.int8)
        width = -(-case.columns // FACTOR_COLUMNS) * (1 if minima is None else 2)
        factors = rng.uniform(-0.0005, 0.0005, (case.rows, width)).astype(np.float16)
    return pack_panels(codes, scales, minima, case.bits, case.block, factors)


def x_shape(case: Case) -> tuple[int, ...]:
    """Of the activations."""
    heads = case.extra.get("heads")
    return (case.tokens, heads, case.columns // heads) if heads else (1, case.tokens, case.columns)


def assert_close(got: np.ndarray, wanted: np.ndarray, *, exact: bool, most: float, share: float) -> None:
    """Assert that results are the oracle's; without `exact` an activation in the middle between two codes may round to either.

    most: by which a result may then differ, as a part of the largest.
    share: of results that differ by no more than sums of float32 do.
    """
    assert got.shape == wanted.shape
    size = max(float(np.abs(wanted).max(initial=0)), 1.0)
    close = np.abs(got - wanted) <= 2e-5 * size
    if exact:
        assert close.all()
    else:
        assert np.abs(got - wanted).max(initial=0) <= most * size
        assert close.mean() > share if close.size else True


def expected(case: Case, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The oracle's result."""
    return block_linear(**arrays, **case.attributes)
