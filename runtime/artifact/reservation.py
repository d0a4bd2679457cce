"""Reserves an output for one build at a time, and puts right what a killed build left.

The builds of DIR/NAME work in one hidden directory next to it:

DIR/.NAME.enginewright/
  lock    locked while a build lives; a killed build's lock is free at once
  new/    what the build writes; after an exchange with the output, the old content
  old/    the old content, where the file system has no exchange and two renames take its place

new/ and old/ together mean that a build was killed between the two renames: old/ then goes back to the output.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from enginewright.runtime.artifact.exchange import exchange
from enginewright.runtime.errors import ArtifactError

_LOCK, _NEW, _OLD = "lock", "new", "old"


@contextmanager
def reserved(output: Path) -> Iterator[Path]:
    """Yield an empty directory for the new content of `output`, which no other build can reserve meanwhile.

    What killed builds of `output` left is put right first. At the end nothing but `output` stays.
    output: an absolute path without links; its parent exists.

    Raises:
        ArtifactError: another build has reserved `output`, or its leftovers cannot be put right.
    """
    work = _work_of(output)
    new = work / _NEW
    handle, is_locked = _lock(work, output)
    try:
        if is_locked:
            _clear(work, output)
        try:
            new.mkdir()
        except FileExistsError:  # where there are no locks, this is the lock
            raise ArtifactError(
                f"{new}: got files of another build of {output.name}, or of one that was killed, expected none; "
                "remove them when no build runs"
            ) from None
        new.chmod(0o755)
        try:
            yield new
        finally:
            _clear(work, output)
            (work / _LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # another build is about to lock it
                work.rmdir()
    finally:
        os.close(handle)


def replace(output: Path, new: Path) -> None:
    """Put `new`, the reserved directory, in the place of the directory `output`; `new` is then the old content, or gone.

    One exchange where the file system can. Elsewhere two renames, and an error between them is put right when the
    reservation ends, a kill by the next reservation.
    """
    if not exchange(new, output):
        os.rename(output, new.with_name(_OLD))
        os.rename(new, output)


def is_interrupted(output: Path) -> bool:
    """Tell whether `output` lacks because a build is, or was killed, between the two renames of `replace`."""
    work = _work_of(output)
    return not os.path.lexists(output) and os.path.isdir(work / _NEW) and os.path.isdir(work / _OLD)


def _work_of(output: Path) -> Path:
    return output.parent / f".{output.name}.enginewright"  # also of the root, which has no name


def _lock(work: Path, output: Path) -> tuple[int, bool]:
    """Return the open lock of `work`, and whether it is locked: not every file system has locks."""
    path = work / _LOCK
    while True:
        with suppress(FileExistsError):
            work.mkdir()
        if work.is_symlink() or work.is_file():
            raise ArtifactError(f"{work}: got something else, expected the directory of builds; move it away")
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the build before has just removed the directory
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle, True
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(handle)
            raise ArtifactError(
                f"{output}: got another build that writes it now, expected none; wait for its end, or choose another --output"
            ) from None
        except OSError:
            return handle, False
        os.close(handle)  # the build before has removed this lock


def _clear(work: Path, output: Path) -> None:
    """Put old content back whose replacement was cut short, and remove all else."""
    new, old = work / _NEW, work / _OLD
    if new.is_dir() and old.is_dir():
        try:
            os.rename(old, output)
        except OSError as e:
            raise ArtifactError(
                f"{old}: got the old content of {output}, expected to put it back ({e.strerror}); move one of them away"
            ) from e
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
