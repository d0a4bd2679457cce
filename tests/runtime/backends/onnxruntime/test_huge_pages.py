"""Tests that exactly the memory that is new and in use is requested to lie in huge pages."""

from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest

from enginewright.runtime.backends.onnxruntime import huge_pages as module
from enginewright.runtime.backends.onnxruntime.huge_pages import Span, huge_pages

SIZE = 2 << 20


@pytest.mark.parametrize(
    ("spans", "others", "parts"),
    [
        ([(0, 9)], [], [(0, 9)]),
        ([(0, 9)], [(0, 9)], []),
        ([(2, 9)], [(0, 4)], [(4, 9)]),
        ([(2, 9)], [(8, 12)], [(2, 8)]),
        ([(0, 9)], [(2, 3), (5, 7)], [(0, 2), (3, 5), (7, 9)]),
        ([(0, 4), (6, 9)], [(3, 7)], [(0, 3), (7, 9)]),
        ([(4, 6)], [(0, 4), (6, 9)], [(4, 6)]),
    ],
)
def test_parts_that_are_new(spans: list[Span], others: list[Span], parts: list[Span]) -> None:
    assert module._without(spans, others) == parts


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_little_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Span] = []
    monkeypatch.setattr(module, "_huge_page_size", lambda: SIZE)
    monkeypatch.setattr(module, "_collapse", asked.append)
    with huge_pages():
        kept = _filled_map()
    assert asked == [] and len(kept) == 4 * SIZE


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_new_memory_in_use_is_asked_for_whole_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Span] = []
    monkeypatch.setattr(module, "_huge_page_size", lambda: SIZE)
    monkeypatch.setattr(module, "_WORTHWHILE", 0)
    monkeypatch.setattr(module, "_collapse", asked.append)
    old = _filled_map()
    with huge_pages():
        new, untouched = _filled_map(), mmap.mmap(-1, 8 * SIZE, flags=mmap.MAP_PRIVATE)
    assert all(first % SIZE == end % SIZE == 0 for first, end in asked)
    assert _covered(asked, new) >= 3 * SIZE  # of 4, whose ends need not be bounds of huge pages
    assert _covered(asked, old) == 0
    assert _covered(asked, untouched) == 0


def test_what_memory_holds_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTHWHILE", 0)
    with huge_pages():
        array = np.random.default_rng(0).integers(0, 256, 4 * SIZE + 123, np.uint8)
    np.testing.assert_array_equal(array, np.random.default_rng(0).integers(0, 256, 4 * SIZE + 123, np.uint8))


def test_a_system_without_them_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Span] = []
    monkeypatch.setattr(module, "_huge_page_size", lambda: None)
    monkeypatch.setattr(module, "_collapse", asked.append)
    with huge_pages():
        _filled_map()
    assert asked == []


def _filled_map() -> mmap.mmap:
    filled = mmap.mmap(-1, 4 * SIZE, flags=mmap.MAP_PRIVATE)
    filled.write(b"x" * len(filled))
    return filled


def _covered(spans: list[Span], memory: mmap.mmap) -> int:
    """Bytes of `memory` that the spans hold."""
    start = np.frombuffer(memory, np.uint8).ctypes.data
    return sum(max(0, min(end, start + len(memory)) - max(first, start)) for first, end in spans)
