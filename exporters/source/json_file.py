"""Reads JSON objects from a checkpoint's files, with errors that say which file it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enginewright.runtime.artifact.files import json_file
from enginewright.runtime.artifact.files.json_file import MOST_BYTES
from enginewright.runtime.errors import ExportError

_MEND = "download the file again"


def read_json(path: Path, owner: str = "Hugging Face checkpoint") -> dict[str, Any]:
    """Return the JSON object in `path`, a file in the directory of an `owner`; ExportError when there is none."""
    if not path.is_file():
        raise ExportError(f"{path}: not found; expected the directory of a {owner} with it")
    return json_file.read_object(path, ExportError, _MEND)


def parse_json(content: bytes, path: Path, *, most: int = MOST_BYTES) -> dict[str, Any]:
    """Return the JSON object in `content`, which is that of `path`; ExportError when it is none, or has more bytes."""
    value = json_file.parse_json(content, path, ExportError, _MEND, most=most)
    return json_file.as_object(value, path, ExportError, _MEND)
