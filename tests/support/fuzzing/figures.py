"""Figures of the attempts of a test, printed after all tests: how many, the slowest, and the most memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

HEADER = ("test", "attempts", "refused", "seconds", "peak MiB", "slowest s", "slowest attempt")


@dataclass
class Figures:
    """Counts the attempts of one test. The fixture `figures` makes one for each test; `note` adds an attempt to it.

    peak: the most memory in MiB of a process of another kind, such as a driver of ops; that of the test's own comes with `row`.
    """

    attempts: int = 0
    refused: int = 0
    slowest: tuple[float, str] = (0.0, "")
    peak: int = 0
    begin: float = field(default_factory=time.perf_counter)

    def note(self, case: object, seconds: float, *, refused: bool = False, attempts: int = 1) -> None:
        """Add an attempt, or as many as one step of the test makes."""
        self.attempts += attempts
        self.refused += refused
        if seconds > self.slowest[0]:
            self.slowest = seconds, short(case, 60)

    @contextmanager
    def timed(self, case: object) -> Iterator[None]:
        """Note an attempt that lasts as long as the block."""
        begin = time.perf_counter()
        yield
        self.note(case, time.perf_counter() - begin)

    def row(self, name: str) -> tuple[Any, ...]:
        """The columns that HEADER names."""
        used = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) >> 10
        seconds = round(time.perf_counter() - self.begin, 1)
        slowest, case = self.slowest
        return name, self.attempts, self.refused, seconds, max(used, self.peak), round(slowest, 3), case


def short(case: object, characters: int) -> str:
    """The representation of a case, without its middle if it is longer."""
    text, half = repr(case), characters // 2
    return text if len(text) <= characters else f"{text[:half]} ... {text[-half:]}"
