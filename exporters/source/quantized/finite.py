"""Refuses scales that are no numbers, which a damaged file has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from enginewright.runtime.errors import ExportError


def check_finite(values: np.ndarray, file: Path, name: str) -> np.ndarray:
    """Return `values`, which the tensor `name` of `file` stands for.

    Raises:
        ExportError: one of them is NaN or infinity.
    """
    if not np.isfinite(values).all():
        raise ExportError(f"{file}: tensor {name!r} holds NaN or infinity; the checkpoint is damaged")
    return values
