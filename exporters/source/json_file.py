"""Reads JSON objects from files, with errors that say which file it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from enginewright.runtime.errors import ExportError


def read_json(path: Path, owner: str = "Hugging Face checkpoint") -> dict[str, Any]:
    """Return the JSON object in `path`, a file in the directory of an `owner`; ExportError when there is none."""
    if not path.is_file():
        raise ExportError(f"{path}: not found; expected the directory of a {owner} with it")
    return parse_json(path.read_bytes(), path)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """Return the JSON object in `content`, which is that of `path`; ExportError when it is none."""
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as e:  # not JSON, not UTF-8, a number of too many digits, or too deep
        raise ExportError(f"{path}: not valid JSON ({e}); download the file again") from e
    if not isinstance(value, dict):
        raise ExportError(f"{path}: got a JSON {type(value).__name__}, expected an object")
    return value
