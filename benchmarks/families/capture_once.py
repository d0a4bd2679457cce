"""Exports of one checkpoint that share its captured graph: tracing takes nine tenths of the time of a small model's build."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

from enginewright.exporters import export
from enginewright.exporters.capture.cache_formats import CacheFormat
from enginewright.exporters.capture.capture import Captured, capture
from enginewright.exporters.source.skeleton import Skeleton


@contextmanager
def capture_once() -> Iterator[None]:
    """Let exports inside the context, all of one checkpoint, capture its graph once for each cache format."""
    made: list[tuple[CacheFormat, Captured]] = []

    def capture_or_copy(skeleton: Skeleton, cache: CacheFormat) -> Captured:
        first = next((captured for known, captured in made if known == cache), None)
        if first is None:
            first = capture(skeleton, cache)
            made.append((cache, first))
        return replace(first, model=first.model.clone())

    with mock.patch.object(export, "capture", capture_or_copy):
        yield
