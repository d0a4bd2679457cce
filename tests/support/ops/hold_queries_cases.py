"""Cases of HoldQueries, the same for every implementation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call: the first new position and the number of new tokens of each row."""

    name: str
    rows: tuple[tuple[int, int], ...]
    heads: int = 4
    entries: int = 8
    dim: int = 64


CASES = (
    Case(name="decode", rows=((0, 1), (7, 1), (8, 1), (100003, 1))),
    Case(name="one", rows=((5, 1),), heads=1, entries=1, dim=1),
    Case(name="prompts", rows=((0, 300), (3, 8), (2, 9), (6, 7)), entries=8),
    Case(name="mixed", rows=((9, 2), (4, 0), (0, 37), (1, 0)), heads=3, entries=11, dim=33),
    Case(name="no_rows", rows=()),
    Case(name="no_tokens", rows=((4, 0), (0, 0))),
    Case(name="drafts", rows=((700, 5), (31, 4)), heads=14, entries=13, dim=80),
    Case(name="far", rows=((2**40 + 5, 3),), entries=7),
)


def make_inputs(case: Case) -> dict[str, np.ndarray]:
    """Random queries and rings, always the same ones for a case; slots scattered, those of rows without tokens -1."""
    random = np.random.default_rng(case.dim)
    counts = [new for _, new in case.rows]
    slots = random.permutation(len(counts) + 2)[: len(counts)].astype(np.int32)
    slots[np.array(counts, int) == 0] = -1
    positions = [np.arange(first, first + new) for first, new in case.rows]
    return {
        "query": random.standard_normal((sum(counts), case.heads, case.dim)).astype(np.float32),
        "ring": random.standard_normal((len(counts) + 2, case.heads, case.entries, case.dim)).astype(np.float32),
        "query_starts": np.cumsum([0, *counts]).astype(np.int32),
        "slots": slots,
        "position_ids": np.concatenate([np.zeros(0, np.int64), *positions]).astype(np.int64),
    }
