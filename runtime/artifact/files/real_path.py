"""Follows links in paths that others may have made."""

from __future__ import annotations

import os
from pathlib import Path


def real_path(path: str | Path) -> Path:
    """Return the absolute path that links lead to; where they lead in a circle, or no file can have the name, as far as they do.

    `Path.resolve` raises RuntimeError of links in a circle, up to Python 3.12.
    """
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        return Path(os.path.abspath(path))


def is_within(path: Path, folder: Path) -> bool:
    """Return whether `path` leads into the folder, links followed."""
    return real_path(path).is_relative_to(real_path(folder))
