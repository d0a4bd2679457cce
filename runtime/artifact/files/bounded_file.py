"""Reads whole files, none of them larger than what its reader can have a use for."""

from __future__ import annotations

from pathlib import Path

from enginewright.runtime.errors import EnginewrightError

MOST_TEXT = 1 << 30
"""The most bytes of a text that commands read: prompts, calibration texts, what is evaluated."""


def read_bounded(path: Path, most: int, error: type[EnginewrightError], mend: str) -> bytes:
    """Return the content of the file, which is read no further than `most` bytes, also where it has no end.

    error: the class of the error; mend: its last part, which says what to do.

    Raises:
        EnginewrightError: of the class `error`: the file cannot be read, or is larger.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2) if file.seekable() else 0
            if size <= most:
                if size:
                    file.seek(0)
                content = file.read(most + 1)
                size = len(content)
    except (OSError, ValueError) as e:  # ValueError: a name that no file can have
        raise error(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e}); {mend}") from e
    if size > most:
        raise error(f"{path}: got {_bytes(size, most)} bytes, expected {most:,} at most; {mend}")
    return content


def _bytes(size: int, most: int) -> str:
    return f"more than {most:,}" if size == most + 1 else f"{size:,}"
