"""Files that a broken-off run leaves whole: written beside their place, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enginewright.runtime.errors import ExportError


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into an ExportError."""
    try:
        yield
    except OSError as e:
        raise ExportError(
            f"{folder}: cannot be written or read ({e.strerror or e}); make room or choose another folder, then run "
            "again: the blocks that are done are kept"
        ) from e


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, which holds either what it held before or all of it."""
    beside = path.with_name(f"{path.name}.tmp")
    with disk_errors(path.parent):
        with beside.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        beside.replace(path)
