"""Exchanges the names of two directories in one step, where the system can."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD = -100  # paths are relative to the working directory
_RENAME_EXCHANGE = 2
# The file system or the kernel has no exchange; EPERM also comes from container filters that do not know the call.
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


def exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two directories of one file system, so that both exist at every moment.

    Return False, with nothing changed, where the system or the file system cannot do that.

    Raises:
        OSError: it can, but failed; nothing was changed.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux, glibc 2.28 or newer
    if call is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    if call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))
