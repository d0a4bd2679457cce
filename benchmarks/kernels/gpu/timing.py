"""Times launches on a GPU: many launches as one CUDA graph, between two events, bodies in turn.

A body is a list of launches that do the same work on different memory, so that none finds its data in a cache. The benchmark
measures through a `Timer`; a test passes one that runs every launch once on the CPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Launch = Callable[[], object]
CACHES = 4
"""A body touches this many times the bytes of the last-level cache before it uses the same memory again."""
SAMPLE_SECONDS = 2e-3
"""Least time between two events, whose resolution is half a microsecond."""
MOST_NODES = 256


@dataclass(frozen=True)
class Times:
    """Best and median seconds of one launch; created by `Timer.alternate`."""

    best: float
    median: float


class Timer(Protocol):
    """Measures launches on `device`."""

    device: str

    def sets(self, bytes: int, most: int = 256) -> int:
        """The number of sets of `bytes` bytes that together do not fit a cache; at most `most`."""
        ...

    def alternate(self, bodies: Sequence[Sequence[Launch]]) -> list[Times]:
        """Measure the bodies in turn; return the times of each."""
        ...


class CudaTimer:
    """A Timer on the current GPU.

    rounds: how many times each body is measured.
    """

    device = "cuda"

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.cache_bytes = int(torch.cuda.get_device_properties(0).L2_cache_size)

    def sets(self, bytes: int, most: int = 256) -> int:
        """See Timer."""
        return max(1, min(most, -(-CACHES * self.cache_bytes // max(bytes, 1))))

    def alternate(self, bodies: Sequence[Sequence[Launch]]) -> list[Times]:
        """See Timer."""
        samples = [self._sample(body) for body in bodies]
        found: list[list[float]] = [[] for _ in bodies]
        for _ in range(self.rounds):
            for sample, times in zip(samples, found, strict=True):
                times.append(sample())
        return [Times(min(times), statistics.median(times)) for times in found]

    def _sample(self, body: Sequence[Launch]) -> Callable[[], float]:
        """A function that measures for SAMPLE_SECONDS or longer; it returns the seconds of one launch."""
        for launch in body:
            launch()  # the first launch may compile, tune and allocate
        torch.cuda.synchronize()
        passes = max(1, min(MOST_NODES // len(body), 16))
        run = _captured(body, passes) or _repeated(body, passes)
        launches = passes * len(body)
        once = _seconds(run, 1)
        repeats = max(1, int(SAMPLE_SECONDS / max(once, 1e-7)))
        return lambda: _seconds(run, repeats) / (repeats * launches)


def _repeated(body: Sequence[Launch], passes: int) -> Launch:
    def run() -> None:
        for _ in range(passes):
            for launch in body:
                launch()

    return run


def _captured(body: Sequence[Launch], passes: int) -> Launch | None:
    """A function that replays the launches as one graph; None if one of them cannot be captured."""
    graph: Any = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            _repeated(body, passes)()
    except RuntimeError:  # an operator of torch that waits for the device, or allocates where the graph cannot see it
        torch.cuda.synchronize()
        return None
    replay: Launch = graph.replay
    replay()
    torch.cuda.synchronize()
    return replay


def _seconds(run: Launch, repeats: int) -> float:
    event: Any = torch.cuda.Event  # torch does not annotate it
    start, end = (event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second of this device: reads and writes of a copy together, and reads alone."""

    copy: float
    read: float


def measure_bandwidth(timer: Timer, bytes: int) -> Bandwidth:
    """Measure the bandwidth on a buffer of `bytes` bytes."""
    one, other = (torch.zeros(bytes // 4, device=timer.device) for _ in range(2))
    copy, total, most = timer.alternate([[lambda: other.copy_(one)], [lambda: one.sum()], [lambda: one.amax()]])
    return Bandwidth(2 * bytes / copy.best, bytes / min(total.best, most.best))
