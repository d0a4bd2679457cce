"""Runs contests: times of our calls and of rivals become results with bandwidths, ratios and targets kept or missed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from enginewright.plugins.bench_cuda.calls import Call
from enginewright.plugins.bench_cuda.contests import Contest, Entry, Figure, FlushContest, Target
from enginewright.plugins.bench_cuda.rivals import Family, Rival
from enginewright.plugins.bench_cuda.timing import Bandwidth, Launch, Timer, Times
from enginewright.plugins.libraries.cuda import CudaLibrary

MODEL_BYTES = 16e9
"""Weights of an 8B model in halves, which each of its decode steps reads."""


@dataclass(kw_only=True)
class Result:
    """One line. Times in microseconds, bandwidths in bytes a second; shares and the ratio are of what is better as 1."""

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
    rival: str | None = None
    rival_best: float = 0.0
    ratio: float = 0.0
    rivals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Best and median of each."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Rivals that did not run, and why."""
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
        if self.rival:
            parts.append(f"torch's best {self.rival_best:.2f} us ({self.rival}), ratio {self.ratio:.2f}")
        parts += [f"target {target}: {'met' if met else 'NOT MET'}" for target, met in self.targets.items()]
        return "; ".join([*parts, self.note] if self.note else parts)


def run_contest(
    contest: Contest | FlushContest, library: CudaLibrary, timer: Timer, bandwidth: Bandwidth, compiled: bool
) -> list[Result]:
    """Its results; memory is free again when it returns. compiled: rivals of torch.compile take part."""
    if isinstance(contest, FlushContest):
        return [_flush(contest, library, timer, bandwidth)]
    bodies = [_our_body(entry.make, library, timer) for entry in contest.entries.values()]
    ways: dict[str, list[Launch]] = {}
    left_out: dict[str, str] = {}
    if contest.family is not None:
        torch.compiler.reset()  # each shape is compiled for itself
        ways, left_out = _rival_bodies(contest.family(compiled), timer)
    times = timer.alternate([*(body for body, _ in bodies), *ways.values()])
    rivals = dict(zip(ways, times[len(bodies) :], strict=True))
    results = []
    for (op, entry), (body, call), taken in zip(contest.entries.items(), bodies, times, strict=False):
        result = _result(contest, op, taken, call.moved, bandwidth)
        result.left_out = left_out
        result.note = _cache_note(timer, len(body), call.moved)
        _compare(result, rivals)
        _judge(result, entry)
        results.append(result)
    return results


def _our_body(make: Callable[[str], Call], library: CudaLibrary, timer: Timer) -> tuple[list[Launch], Call]:
    """Launches on as many sets of memory as do not fit a cache; one of the calls."""
    first = make(timer.device)
    made = [first, *(make(timer.device) for _ in range(timer.sets(first.moved) - 1))]
    return launches(library, made, timer.device), first


def launches(library: CudaLibrary, made: Sequence[Call], device: str) -> list[Launch]:
    """Start each call on torch's current stream; they share a workspace."""
    needed = max(library.workspace_bytes(call.structure) for call in made)
    workspace = torch.empty(max(needed, 1), dtype=torch.uint8, device=device)

    def launch(call: Call) -> Launch:
        return lambda: library.start(call.structure, workspace.data_ptr(), needed, _stream(device))

    return [launch(call) for call in made]


def _stream(device: str) -> int:
    return int(torch.cuda.current_stream().cuda_stream) if device == "cuda" else 0


def _rival_bodies(family: Family, timer: Timer) -> tuple[dict[str, list[Launch]], dict[str, str]]:
    """Launches of each rival that runs, on the same sets; why the others do not."""
    first = family.inputs(timer.device)
    count = timer.sets(sum(tensor.numel() * tensor.element_size() for tensor in first))
    sets = [first, *(family.inputs(timer.device) for _ in range(count - 1))]

    def launch(rival: Rival, inputs: list[torch.Tensor]) -> Launch:
        return lambda: rival(*inputs)

    bodies, left_out = {}, {}
    for name, rival in family.rivals.items():
        try:
            rival(*first)
        except Exception as error:  # backends and compilers refuse shapes and devices with errors of many kinds
            left_out[name] = f"{type(error).__name__}: {error}".split("\n")[0]
        else:
            bodies[name] = [launch(rival, inputs) for inputs in sets]
    return bodies, left_out


def _result(contest: Contest, op: str, taken: Times, moved: int, bandwidth: Bandwidth) -> Result:
    rate = moved / taken.best
    return Result(
        group=contest.group,
        name=contest.name,
        op=op,
        best=taken.best * 1e6,
        median=taken.median * 1e6,
        bytes=moved,
        bandwidth=rate,
        copy_share=rate / bandwidth.copy,
        read_share=rate / bandwidth.read,
        tera_operations=contest.operations / taken.best / 1e12,
    )


def _cache_note(timer: Timer, sets: int, moved: int) -> str:
    return "" if sets >= timer.sets(moved, 1 << 30) else "partly from the cache: all its sets are small"


def _compare(result: Result, rivals: dict[str, Times]) -> None:
    if not rivals:
        return
    result.rivals = {name: (times.best * 1e6, times.median * 1e6) for name, times in rivals.items()}
    result.rival = min(rivals, key=lambda name: rivals[name].best)
    result.rival_best = rivals[result.rival].best * 1e6
    result.ratio = result.rival_best / result.best


def _judge(result: Result, entry: Entry) -> None:
    figures: dict[Figure, float] = {
        "ratio": result.ratio,
        "copy_share": result.copy_share,
        "microseconds": result.best,
    }
    for target in entry.targets:
        if target.figure != "ratio" or result.rival:
            result.targets[str(target)] = target.is_met(figures[target.figure])


def _flush(contest: FlushContest, library: CudaLibrary, timer: Timer, bandwidth: Bandwidth) -> Result:
    """Encoding is what a call that completes tiles takes longer; a step reads the weights and attends in every layer."""
    kinds = (contest.encoding, contest.plain, contest.attention)
    bodies = [
        launches(library, [make(timer.device) for _ in range(count)], timer.device)
        for make, count in zip(kinds, (contest.layers, contest.layers, 2), strict=True)
    ]
    encoding, plain, attention = timer.alternate(bodies)
    best, median = (contest.layers * (a - b) for a, b in ((encoding.best, plain.best), (encoding.median, plain.median)))
    attending = 128 * contest.layers * attention.best
    step = attending + 128 * MODEL_BYTES / bandwidth.read
    result = Result(group=contest.group, name=contest.name, op="KVarN k4v2", best=best * 1e6, median=median * 1e6)
    result.note = (
        f"{best / attending:.3%} of the attention of 128 steps at {contest.context} tokens, "
        f"{best / step:.3%} of those steps with {MODEL_BYTES / 1e9:.0f} GB of weights read"
    )
    _judge_flush(result, contest.target, best / step)
    return result


def _judge_flush(result: Result, target: Target, fraction: float) -> None:
    result.targets[f"{target} of 128 steps"] = target.is_met(fraction)
