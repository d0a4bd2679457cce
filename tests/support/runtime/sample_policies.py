"""The sample cache policies of `tests/support/extension`, for as long as a test runs, and what each of them keeps."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tests.support import extensions

SAMPLES = extensions.SAMPLES / "cache_policies"
Seen: TypeAlias = Callable[[int, int, int, int], np.ndarray]
"""(layer without window, head, position, prompt tokens) -> the positions that a token sees there, itself included."""


@contextmanager
def extended(folder: Path) -> Iterator[None]:
    """Let the sample policies be found, from a copy under `folder`."""
    shutil.copytree(SAMPLES, folder / "cache_policies", ignore=shutil.ignore_patterns("__pycache__"))
    with extensions.extended(folder):
        yield


def first_and_newest(size: int, first: int, newest: int) -> tuple[dict[str, Any], Seen]:
    """The policy as a manifest has it, and what a token sees, as a formula of positions alone."""

    def seen(layer: int, head: int, position: int, prompt: int) -> np.ndarray:
        full = position // size
        if full <= first + newest:
            return np.arange(position + 1)
        return np.concatenate([np.arange(first * size), np.arange((full - newest) * size, position + 1)])

    return {"kind": "first_and_newest", "first": first, "newest": newest}, seen


def budget_per_head(size: int, budgets: Sequence[Sequence[int]]) -> tuple[dict[str, Any], Seen]:
    """The policy as a manifest has it, and what a token sees, as a formula of positions alone."""

    def seen(layer: int, head: int, position: int, prompt: int) -> np.ndarray:
        last = prompt + (position - prompt) // size * size  # where it was due last
        if position < prompt or not last:
            return np.arange(position + 1)
        begin = max(last // size - budgets[layer][head], 0) * size
        return np.arange(begin, position + 1)

    return {"kind": "budget_per_head", "budgets": [list(own) for own in budgets]}, seen
