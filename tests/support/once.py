"""Work that a test session does once, whichever of its processes needs it first.

pytest-xdist runs tests in several processes, each with session fixtures of its own. What is expensive to make goes
through `made_once`: the first process makes it, and the others wait and read.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of the file `path`; another process that wants it waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def session_folder(factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of this session, the same for all of its processes."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(factory: pytest.TempPathFactory, key: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, one for each `key`; no test may change its content.

    key: everything that the contents depend on. make: gets the folder, which is new and empty, and is not asked again
    unless it raises.
    """
    folder = session_folder(factory) / "made" / hashlib.sha256(key.encode()).hexdigest()[:16]
    done = folder.with_suffix(".done")
    with locked(folder.with_suffix(".lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
