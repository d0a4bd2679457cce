"""Moves weights into huge pages, so that reading them takes a page table entry for each 2 MiB instead of each 4 KiB.

ONNX Runtime repacks weights into memory of its own, and most systems give huge pages only to memory that asks for them.
Nothing here changes the contents of memory. A system that refuses leaves the memory as it was.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

Span = tuple[int, int]
"""First address, and the address after the last."""

_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_MAPS = Path("/proc/self/maps")
_ANONYMOUS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(?:\[heap\])?$", re.MULTILINE)
_WORTHWHILE = 64 << 20  # bytes
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # the second one from Linux 6.1 on


@contextmanager
def huge_pages() -> Iterator[None]:
    """Move the memory that the body allocates and keeps into huge pages, as far as it fills them.

    Does nothing on systems other than Linux, nor for less memory than fits a processor's caches and page tables anyway.
    """
    size = _huge_page_size()
    if size is None:
        yield
        return
    before = _anonymous()
    yield
    filled = [part for span in _without(_anonymous(), before) for part in _filled(span, size)]
    if sum(end - first for first, end in filled) >= _WORTHWHILE:
        for part in filled:
            _collapse(part)


def _huge_page_size() -> int | None:
    """Return the bytes of a huge page; None where the system gives none."""
    try:
        allowed = "[never]" not in (_SETTINGS / "enabled").read_text()
        return int((_SETTINGS / "hpage_pmd_size").read_text()) if sys.platform == "linux" and allowed else None
    except OSError:
        return None


def _anonymous() -> list[Span]:
    """Return the spans of the process's private writable memory that belong to no file, in order of address."""
    return [(int(first, 16), int(end, 16)) for first, end in _ANONYMOUS.findall(_MAPS.read_text())]


def _without(spans: list[Span], others: list[Span]) -> list[Span]:
    """Return the parts of `spans` that lie in none of `others`."""
    parts = []
    for first, end in spans:
        for other_first, other_end in others:  # in order of address
            if other_end <= first or other_first >= end:
                continue
            parts.append((first, other_first))
            first = other_end
        parts.append((first, end))
    return [(first, end) for first, end in parts if first < end]


def _filled(span: Span, size: int) -> list[Span]:
    """Return the runs of whole huge pages in a span in which every small page is in use.

    Others are left alone, because a huge page would take memory that is not in use.
    """
    first, end = -(-span[0] // size) * size, span[1] // size * size
    if first >= end:
        return []
    used = np.zeros((end - first) // mmap.PAGESIZE, np.uint8)
    if ctypes.CDLL(None).mincore(
        ctypes.c_void_p(first), ctypes.c_size_t(end - first), ctypes.c_void_p(used.ctypes.data)
    ):
        return []  # the memory has been given back meanwhile
    full = (used.reshape(-1, size // mmap.PAGESIZE) & 1).all(axis=1)
    edges = first + size * np.flatnonzero(np.diff(full, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _collapse(span: Span) -> None:
    """Ask the system to move a span into huge pages now. If it refuses, reading is slower and nothing else changes.

    Only a system that does not know this request is asked for huge pages over time. That second request stays in force for
    whatever lies there later, so that memory which is given back and taken again would come 2 MiB at a time.
    """
    library = ctypes.CDLL(None, use_errno=True)
    place = ctypes.c_void_p(span[0]), ctypes.c_size_t(span[1] - span[0])
    if library.madvise(*place, _MADV_COLLAPSE) and ctypes.get_errno() == errno.EINVAL:
        library.madvise(*place, _MADV_HUGEPAGE)
