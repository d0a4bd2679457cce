"""Atomic file writes: a temporary file is written next to the target, then renamed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enginewright.runtime.errors import ExportError


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the disk's errors into an ExportError that names `folder`."""
    try:
        yield
    except OSError as e:
        raise ExportError(
            f"{folder}: cannot be written or read ({e.strerror or e}); make room or choose another folder, then run "
            "again: what is done is kept"
        ) from e


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder` until the body is done; the folder is made if it is missing.

    Raises:
        ExportError: another process is at work in it.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise ExportError(f"{folder}: another process works there; wait for it, its results will serve") from e
        yield
    finally:
        os.close(handle)


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`; a run that is broken off leaves there either the old content or all of the new one."""
    temporary = path.with_name(f"{path.name}.tmp")
    with disk_errors(path.parent):
        with temporary.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
