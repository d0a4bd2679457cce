"""The one table of ClpEmit cases and their inputs; every implementation runs all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call; codes: heads in 8 bits."""

    name: str
    rows: int = 5
    size: int = 48
    inner: int = 24
    vocab: int = 1000
    k: int = 3
    classes: int = 3
    tau: float = 0.3
    codes: bool = False
    activation: int | None = None
    residual: int | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes; a default is left out so that it is tested."""
        given = {name: getattr(self, name) for name in ("k", "tau", "activation", "residual")}
        return {name: value for name, value in given.items() if value is not None}


CASES = [
    Case(name="usual"),
    Case(name="one_row", rows=1),
    Case(name="no_row", rows=0),
    Case(name="many_rows", rows=61, k=4, classes=4),
    Case(name="one_head", k=2, classes=2, rows=17),
    Case(name="fewer_heads_than_classes", k=2, classes=5, rows=17),
    Case(name="fewer_classes_than_heads", k=6, classes=2, rows=17),
    Case(name="one_class", classes=1),
    Case(name="odd_sizes", size=37, inner=19, vocab=521, rows=13),
    Case(name="smallest", size=1, inner=1, vocab=1, rows=9),
    Case(name="one_block", vocab=256, rows=11),
    Case(name="blocks_and_one", vocab=513, rows=7),
    Case(name="strict", tau=0.6, rows=33),
    Case(name="never", tau=1.01, rows=33),
    Case(name="codes", codes=True, rows=7),
    Case(name="codes_odd", codes=True, size=37, inner=19, vocab=521, rows=13),
    Case(name="codes_many_rows", codes=True, rows=61, k=4, classes=4),
    Case(name="silu", activation=1, rows=9),
    Case(name="residual", activation=1, residual=1, inner=48, rows=9),
    Case(name="threads", size=320, inner=160, vocab=4099, rows=3),
    Case(name="threads_codes", size=320, inner=160, vocab=4099, rows=3, codes=True),
]


def quantize_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales, the largest of a row +-127."""
    scales = np.abs(weight).max(axis=-1) / np.float32(127)
    return np.rint(weight / scales[..., None]).astype(np.int8), scales


def make_inputs(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Random heads and states of ordinary size."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    extra = case.k - 1
    out = normal(extra, case.vocab, case.inner)
    codes, scales = quantize_rows(out)
    return {
        "hidden": normal(case.rows, case.size),
        "greedy": rng.integers(0, case.vocab, case.rows),
        "classifier_weight": normal(case.classes, case.size) / np.float32(np.sqrt(case.size)),
        "classifier_bias": normal(case.classes),
        "up_weight": normal(extra, case.inner, case.size) / np.float32(np.sqrt(case.size)),
        "up_bias": normal(extra, case.inner),
        "out_bias": normal(extra, case.vocab),
    } | ({"out_codes": codes, "out_scales": scales} if case.codes else {"out_weight": out})


def always(arrays: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """The inputs with a classifier that says `length` for every row."""
    bias = np.zeros(max(length, 1) + 1, np.float32)
    bias[length] = 50
    weight = np.zeros((len(bias), arrays["hidden"].shape[1]), np.float32)
    return {**arrays, "classifier_weight": weight, "classifier_bias": bias}
