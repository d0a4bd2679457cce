"""The folder in a tuner's output that keeps a run until it is done, so that one that was broken off goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from enginewright.exporters.calibration.atomic_files import alone_in, replace_file
from enginewright.runtime.artifact.files.json_file import parse_json, read_json
from enginewright.runtime.errors import ExportError

UNFINISHED, REQUEST = ".unfinished", "request.json"


def read_note(path: Path) -> Any:
    """Return the value of a JSON file in the folder of an unfinished run; ExportError where it is damaged."""
    return read_json(path, ExportError, f"remove {path.parent}, and run again")


@contextmanager
def unfinished_run(output: Path, request: dict[str, Any]) -> Iterator[Path]:
    """Yield the folder of the run whose results go to `output`; it is removed when the body is done, and stays if it fails.

    request: everything that the results depend on, in values of JSON. The folder keeps it.

    Raises:
        ExportError: `output` holds something else, or the unfinished run of another request, or another process works there.
    """
    folder = output / UNFINISHED
    note = folder / REQUEST
    if output.exists() and (not output.is_dir() or (set(output.iterdir()) - {folder} and not note.is_file())):
        raise ExportError(f"{output}: exists and is not empty; remove it, or choose another --output")
    with alone_in(folder):
        if not note.is_file():
            replace_file(note, json.dumps(request, indent=1).encode())
        elif read_note(note) != _as_read(request):
            raise ExportError(
                f"{folder}: holds an unfinished run of another model, data or options; remove it, or repeat that run"
            )
        yield folder
        shutil.rmtree(folder)


def _as_read(request: dict[str, Any]) -> Any:
    """The request as `read_note` gives it: with lists for tuples."""
    return parse_json(json.dumps(request), REQUEST, ExportError, "")
