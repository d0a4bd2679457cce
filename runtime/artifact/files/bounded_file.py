"""Reads whole files, none of them larger than what its reader can have a use for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from enginewright.runtime.errors import EnginewrightError

_PIECE = 1 << 16
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
            size = os.fstat(file.fileno()).st_size
            content = b"" if size > most else _read(file, size, most)
    except (OSError, ValueError) as e:  # ValueError: a name that no file can have
        raise error(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e}); {mend}") from e
    if size > most or len(content) > most:
        got = f"{size:,}" if size > most else f"more than {most:,}"
        raise error(f"{path}: got {got} bytes, expected {most:,} at most; {mend}")
    return content


def _read(file: BinaryIO, size: int, most: int) -> bytes:
    """The content of a file that says it has `size` bytes, or of one that has no size, such as a pipe, until it is too long."""
    if size:
        return file.read(size)
    content = bytearray()
    while len(content) <= most and (piece := file.read(_PIECE)):
        content += piece
    return bytes(content)
