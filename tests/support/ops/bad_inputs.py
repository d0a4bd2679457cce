"""Changes that make the inputs of an op wrong in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def put(name: str, index: Any, value: int) -> Callable[[Arrays], None]:
    """One element."""

    def change(arrays: Arrays) -> None:
        arrays[name][index] = value

    return change


def replaced(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], None]:
    """One array, made anew from what it was."""

    def change(arrays: Arrays) -> None:
        arrays[name] = np.ascontiguousarray(make(arrays[name]))

    return change
