"""Files of numbers that were measured of one model, which methods read and other models must not."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from enginewright.runtime.errors import ExportError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """The model that was measured. sha256: of its tensors, as `hash_of` gives it."""

    name: str
    sha256: str


def write_measured(path: Path, measured: DataclassInstance) -> None:
    """Write a dataclass as JSON, completely or not at all.

    Raises:
        ExportError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(dataclasses.asdict(measured), indent=2) + "\n")
        partial.replace(path)
    except OSError as e:
        raise ExportError(f"--output {path}: cannot be written ({e.strerror or e}); choose another file") from e


def check_output(path: Path, example: str) -> None:
    """Raise ExportError where a file could not be written; `example` is a name for one in a folder."""
    if path.is_dir():
        raise ExportError(f"--output {path}: got a folder, expected a file, such as {path / example}")
    if not path.parent.is_dir():
        raise ExportError(f"--output {path}: got no folder {path.parent}, expected one; make it")
