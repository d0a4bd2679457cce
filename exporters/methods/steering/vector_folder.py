"""Writes a folder of vectors, which `runtime/artifact/vector_files.py` describes and reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from enginewright.exporters.calibration.atomic_files import replace_file
from enginewright.runtime.artifact.vector_files import FORMAT, TASK, VECTORS
from enginewright.runtime.errors import ExportError


def check_output(folder: Path) -> None:
    """Raise ExportError where `folder` is something else than a folder without vectors, before any work."""
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"--output: {folder}: got a file, expected a folder to write; pass another name")
    if taken := [name for name in (VECTORS, TASK) if (folder / name).exists()]:
        raise ExportError(
            f"--output: {folder}: got a folder that has {taken[0]}, expected one without; pass another name"
        )


def write_vectors(
    folder: Path,
    tensors: Mapping[str, NDArray[Any]],
    *,
    task: str,
    model: Mapping[str, str],
    layer: int | None,
    more: Mapping[str, Any],
) -> None:
    """Write vectors.safetensors, then task.json, so that a folder with task.json is whole.

    tensors: float32 vectors [d] by the names of the format.
    task: what the vectors are called.
    model: its name, and the sha256 of its weights; empty where it is unknown.
    layer: after which the vector `fv` is added; None without one.
    more: further keys of task.json: how the vectors were made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = save({name: np.ascontiguousarray(values, np.float32) for name, values in tensors.items()})
    replace_file(folder / VECTORS, content)
    record = {"format": FORMAT, "task": task, "model": dict(model), "layer": layer, **more}
    partial = folder / f".{TASK}.partial"
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(folder / TASK)
