"""Memory in huge pages: weights that a step reads from end to end cost a page table entry per 2 MiB instead of 4 KiB.

ONNX Runtime repacks weights into memory of its own, and most systems give huge pages only to memory that asks for them.
Nothing here changes what memory holds; a system that refuses leaves it as it was.
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
"""First address, and the one behind the last."""

_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_MAPS = Path("/proc/self/maps")
_ANONYMOUS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(?:\[heap\])?$", re.MULTILINE)
_WORTHWHILE = 64 << 20  # bytes
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # the latter from Linux 6.1 on


@contextmanager
def huge_pages() -> Iterator[None]:
    """Move what the body leaves in memory into huge pages, where it fills them wholly. Does nothing but on Linux.

    Nor for less than fits a processor's caches and page tables anyway.
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
    """Bytes of a huge page, None where there is none to be had."""
    try:
        allowed = "[never]" not in (_SETTINGS / "enabled").read_text()
        return int((_SETTINGS / "hpage_pmd_size").read_text()) if sys.platform == "linux" and allowed else None
    except OSError:
        return None


def _anonymous() -> list[Span]:
    """The process's private writable memory that belongs to no file, in order."""
    return [(int(first, 16), int(end, 16)) for first, end in _ANONYMOUS.findall(_MAPS.read_text())]


def _without(spans: list[Span], others: list[Span]) -> list[Span]:
    """The parts of `spans` that lie in none of `others`."""
    parts = []
    for first, end in spans:
        for other_first, other_end in others:  # in order
            if other_end <= first or other_first >= end:
                continue
            parts.append((first, other_first))
            first = other_end
        parts.append((first, end))
    return [(first, end) for first, end in parts if first < end]


def _filled(span: Span, size: int) -> list[Span]:
    """The runs of whole huge pages in a span of which every small page is in use: nothing is to cost memory anew."""
    first, end = -(-span[0] // size) * size, span[1] // size * size
    if first >= end:
        return []
    used = np.zeros((end - first) // mmap.PAGESIZE, np.uint8)
    if ctypes.CDLL(None).mincore(
        ctypes.c_void_p(first), ctypes.c_size_t(end - first), ctypes.c_void_p(used.ctypes.data)
    ):
        return []  # given back meanwhile
    full = (used.reshape(-1, size // mmap.PAGESIZE) & 1).all(axis=1)
    edges = first + size * np.flatnonzero(np.diff(full, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _collapse(span: Span) -> None:
    """Ask for huge pages now. What the system answers does not matter: without, reading is slower.

    Only a system that knows no such request is asked for huge pages over time: that holds for what later lies there, too, and
    memory given back and taken again would then come 2 MiB at a time.
    """
    library = ctypes.CDLL(None, use_errno=True)
    place = ctypes.c_void_p(span[0]), ctypes.c_size_t(span[1] - span[0])
    if library.madvise(*place, _MADV_COLLAPSE) and ctypes.get_errno() == errno.EINVAL:
        library.madvise(*place, _MADV_HUGEPAGE)
