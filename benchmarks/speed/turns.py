"""Steps of several engines in turn, so that what the machine does meanwhile falls on all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Stepping(Protocol):
    """An engine that takes one step and says how long it took."""

    def step(self) -> float:
        """Take a step; return the seconds."""
        ...


def measure(sides: Mapping[str, Stepping], turns: int, *, warm: int, timed: int) -> dict[str, list[float]]:
    """Return the seconds of each side's steps, in an order of sides that reverses every turn.

    turns: of each side that count; one before them allocates.
    warm, timed: steps of a turn that do not count, and that do.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            steps = [sides[name].step() for _ in range(warm + timed)][warm:]
            times[name] += steps if turn else []
    return times
