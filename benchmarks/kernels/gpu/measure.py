"""Runs comparisons, and turns times into measurements: bandwidths, ratios, and targets met or missed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.kernels.gpu.baselines import Baseline, Family
from benchmarks.kernels.gpu.calls import KernelCall
from benchmarks.kernels.gpu.comparisons import Comparison, Entry, Figure, FlushComparison, Target
from benchmarks.kernels.gpu.timing import Bandwidth, Launch, Timer, Times
from enginewright.plugins.libraries.cuda import CudaLibrary

MODEL_BYTES = 16e9
"""Bytes of an 8B model's weights in halves, all of which each decode step reads."""


@dataclass(kw_only=True)
class KernelMeasurement:
    """One measured call and one printed line; created by `run_comparison`.

    best, median: time in microseconds.
    bytes: the bytes that the call has to move.
    bandwidth: bytes a second.
    copy_share, read_share: `bandwidth` divided by the device's plain copy and plain read.
    tera_operations: 1e12 floating-point operations a second; 0 where they are not the limit.
    baseline, baseline_best: the fastest baseline and its best time in microseconds.
    ratio: `baseline_best` divided by `best`; above 1 the kernel is faster.
    """

    group: str
    name: str
    op: str
    best: float
    median: float
    bytes: int = 0
    bandwidth: float = 0.0
    copy_share: float = 0.0
    read_share: float = 0.0
    tera_operations: float = 0.0
    baseline: str | None = None
    baseline_best: float = 0.0
    ratio: float = 0.0
    baselines: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Baseline -> its best and median time in microseconds."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Baseline that did not run -> the reason."""
    targets: dict[str, bool] = field(default_factory=dict)
    """Target -> whether it is met."""
    note: str = ""

    def __str__(self) -> str:
        parts = [f"{self.op}, {self.group} {self.name}: {self.best:.2f} us (median {self.median:.2f})"]
        if self.tera_operations:
            parts.append(f"{self.tera_operations:.1f} TFLOP/s")
        if self.bytes:
            moved = f"{self.bytes / 1e6:.2f} MB, {self.bandwidth / 1e9:.0f} GB/s"
            parts.append(f"{moved}, {self.copy_share:.0%} of copying, {self.read_share:.0%} of reading")
        if self.baseline:
            parts.append(f"torch's best {self.baseline_best:.2f} us ({self.baseline}), ratio {self.ratio:.2f}")
        parts += [f"target {target}: {'met' if met else 'NOT MET'}" for target, met in self.targets.items()]
        return "; ".join([*parts, self.note] if self.note else parts)


def run_comparison(
    comparison: Comparison | FlushComparison, library: CudaLibrary, timer: Timer, bandwidth: Bandwidth, compiled: bool
) -> list[KernelMeasurement]:
    """Run one comparison and return its measurements; its memory is free again afterwards.

    compiled: include the baselines that torch.compile makes.
    """
    if isinstance(comparison, FlushComparison):
        return [_flush(comparison, library, timer, bandwidth)]
    bodies = [_our_body(entry.make, library, timer) for entry in comparison.entries.values()]
    ways: dict[str, list[Launch]] = {}
    left_out: dict[str, str] = {}
    if comparison.family is not None:
        torch.compiler.reset()  # so that each shape is compiled on its own
        ways, left_out = _baseline_bodies(comparison.family(compiled), timer)
    times = timer.alternate([*(body for body, _ in bodies), *ways.values()])
    baselines = dict(zip(ways, times[len(bodies) :], strict=True))
    results = []
    for (op, entry), (body, call), taken in zip(comparison.entries.items(), bodies, times, strict=False):
        result = _measurement(comparison, op, taken, call.moved, bandwidth)
        result.left_out = left_out
        result.note = _cache_note(timer, len(body), call.moved)
        _compare(result, baselines)
        _judge(result, entry)
        results.append(result)
    return results


def _our_body(make: Callable[[str], KernelCall], library: CudaLibrary, timer: Timer) -> tuple[list[Launch], KernelCall]:
    """Launches of the call on several sets of memory, together larger than the cache, and one of the calls."""
    first = make(timer.device)
    made = [first, *(make(timer.device) for _ in range(timer.sets(first.moved) - 1))]
    return launches(library, made, timer.device), first


def launches(library: CudaLibrary, made: Sequence[KernelCall], device: str) -> list[Launch]:
    """Functions that start each call on torch's current stream; the calls share a workspace."""
    needed = max(library.workspace_bytes(call.structure) for call in made)
    workspace = torch.empty(max(needed, 1), dtype=torch.uint8, device=device)

    def launch(call: KernelCall) -> Launch:
        return lambda: library.start(call.structure, workspace.data_ptr(), needed, _stream(device))

    return [launch(call) for call in made]


def _stream(device: str) -> int:
    return int(torch.cuda.current_stream().cuda_stream) if device == "cuda" else 0


def _baseline_bodies(family: Family, timer: Timer) -> tuple[dict[str, list[Launch]], dict[str, str]]:
    """Launches of each baseline that runs, all on the same sets of memory, and the reasons why the others do not run."""
    first = family.inputs(timer.device)
    count = timer.sets(sum(tensor.numel() * tensor.element_size() for tensor in first))
    sets = [first, *(family.inputs(timer.device) for _ in range(count - 1))]

    def launch(baseline: Baseline, inputs: list[torch.Tensor]) -> Launch:
        return lambda: baseline(*inputs)

    bodies, left_out = {}, {}
    for name, baseline in family.baselines.items():
        try:
            baseline(*first)
        except Exception as error:  # backends and compilers refuse shapes and devices with errors of many kinds
            left_out[name] = f"{type(error).__name__}: {error}".split("\n")[0]
        else:
            bodies[name] = [launch(baseline, inputs) for inputs in sets]
    return bodies, left_out


def _measurement(comparison: Comparison, op: str, taken: Times, moved: int, bandwidth: Bandwidth) -> KernelMeasurement:
    rate = moved / taken.best
    return KernelMeasurement(
        group=comparison.group,
        name=comparison.name,
        op=op,
        best=taken.best * 1e6,
        median=taken.median * 1e6,
        bytes=moved,
        bandwidth=rate,
        copy_share=rate / bandwidth.copy,
        read_share=rate / bandwidth.read,
        tera_operations=comparison.operations / taken.best / 1e12,
    )


def _cache_note(timer: Timer, sets: int, moved: int) -> str:
    return "" if sets >= timer.sets(moved, 1 << 30) else "partly from the cache: all its sets are small"


def _compare(result: KernelMeasurement, baselines: dict[str, Times]) -> None:
    if not baselines:
        return
    result.baselines = {name: (times.best * 1e6, times.median * 1e6) for name, times in baselines.items()}
    result.baseline = min(baselines, key=lambda name: baselines[name].best)
    result.baseline_best = baselines[result.baseline].best * 1e6
    result.ratio = result.baseline_best / result.best


def _judge(result: KernelMeasurement, entry: Entry) -> None:
    figures: dict[Figure, float] = {
        "ratio": result.ratio,
        "copy_share": result.copy_share,
        "microseconds": result.best,
    }
    for target in entry.targets:
        if target.figure != "ratio" or result.baseline:
            result.targets[str(target)] = target.is_met(figures[target.figure])


def _flush(comparison: FlushComparison, library: CudaLibrary, timer: Timer, bandwidth: Bandwidth) -> KernelMeasurement:
    """Measure the cost of encoding: the time by which a call that completes tiles is longer than one that does not.

    A decode step reads the weights and attends in every layer.
    """
    kinds = (comparison.encoding, comparison.plain, comparison.attention)
    bodies = [
        launches(library, [make(timer.device) for _ in range(count)], timer.device)
        for make, count in zip(kinds, (comparison.layers, comparison.layers, 2), strict=True)
    ]
    encoding, plain, attention = timer.alternate(bodies)
    best, median = (
        comparison.layers * (a - b) for a, b in ((encoding.best, plain.best), (encoding.median, plain.median))
    )
    attending = 128 * comparison.layers * attention.best
    step = attending + 128 * MODEL_BYTES / bandwidth.read
    result = KernelMeasurement(
        group=comparison.group, name=comparison.name, op="KVarN k4v2", best=best * 1e6, median=median * 1e6
    )
    result.note = (
        f"{best / attending:.3%} of the attention of 128 steps at {comparison.context} tokens, "
        f"{best / step:.3%} of those steps with {MODEL_BYTES / 1e9:.0f} GB of weights read"
    )
    _judge_flush(result, comparison.target, best / step)
    return result


def _judge_flush(result: KernelMeasurement, target: Target, fraction: float) -> None:
    result.targets[f"{target} of 128 steps"] = target.is_met(fraction)
