"""Runs an engine and other runtimes in turn, each in a fresh process, and compares their speeds.

`genai` and `llama_cpp` use this; they know how to run their peer. Each round runs every side once, in an order that reverses
every round, so that drift of the machine affects all sides. Processes are fresh, so that no side's idle threads disturb
another side. Within a process the best of REPEATS generations counts. On a machine that is not idle, the threads of a process
wait for each other longer than they work; then `--threads 1 --cpu-time` still compares.

Limit: a decode step reads all weights once, so its speed is at most the rate of plain reads divided by the bytes of the
weights. The plain read is measured before the rounds and after each. `python -m benchmarks.peers.rounds --threads 2` measures
it alone. The peers' interpreters import this module, too, so it needs only numpy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.results_file import Condition, Figure

REPEATS = 3
CHECKOUT = Path(__file__).resolve().parents[2]
READING_SECONDS = 2.0


@dataclass(frozen=True)
class Competitor:
    """One side of a comparison; created by the commands that run the rounds.

    name: the name in tables.
    command: prints the side's speeds in the form of `enginewright bench --json`.
    weights: the bytes of weights that a decode step reads.
    """

    name: str
    command: Sequence[str]
    weights: int


@dataclass(frozen=True)
class Speeds:
    """Prefill and decode speed, in tokens per second."""

    prefill: float
    decode: float


def add_arguments(parser: argparse.ArgumentParser, *, needs_engine: bool = True) -> None:
    """Add the arguments that all sides have."""
    parser.add_argument("--engine", required=needs_engine, type=Path, nargs="+", help="enginewright engine directories")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="measure processor time: one thread, machine not idle")


def clock(args: argparse.Namespace) -> Callable[[], float]:
    """The clock for measuring speeds, in seconds."""
    return time.process_time if args.cpu_time else time.perf_counter


def size_arguments(args: argparse.Namespace) -> list[str]:
    """The arguments for the size of a run, in the form that `enginewright bench` and the peers' processes take."""
    names = ("prompt-tokens", "new-tokens", "threads", "batch")
    sizes = [text for name in names for text in (f"--{name}", str(getattr(args, name.replace("-", "_"))))]
    return [*sizes, "--cpu-time"] if args.cpu_time else sizes


def engine_side(engine: Path, args: argparse.Namespace) -> Competitor:
    """The side of an enginewright engine."""
    if args.cpu_time:
        script = [sys.executable, "-m", "benchmarks.peers.engine_process", "--engine", str(engine.resolve())]
        return Competitor(engine.name, [*script, *size_arguments(args)], weight_bytes(engine))
    cli = [sys.executable, "-m", "enginewright.runtime.cli", "bench", str(engine.resolve()), "--json"]
    return Competitor(engine.name, [*cli, "--repeat", str(REPEATS), *size_arguments(args)], weight_bytes(engine))


def weight_bytes(engine: Path) -> int:
    """Bytes of the weights file, all of which a step reads: a tied embedding is read whole as the output projection."""
    manifest = json.loads((engine / "manifest.json").read_text())
    return int(manifest["graphs"]["decoder"]["files"][1]["size"])


def best_of_repeats(generate: Callable[[], tuple[float, float, float]], args: argparse.Namespace) -> Speeds:
    """The best speeds of REPEATS generations.

    generate: returns the times before the prompt, at the first token, and after the last token.
    """
    prefill = decode = 0.0
    for _ in range(REPEATS):
        begin, middle, end = generate()
        prefill = max(prefill, args.batch * args.prompt_tokens / (middle - begin))
        decode = max(decode, args.batch * args.new_tokens / (end - middle))
    return Speeds(prefill, decode)


def print_speeds(speeds: Speeds) -> None:
    """Print the speeds in the form of `enginewright bench --json`."""
    print(json.dumps([{"prefill_speed": speeds.prefill, "decode_speed": speeds.decode}]))


def compare(sides: Sequence[Competitor], args: argparse.Namespace) -> list[Figure]:
    """Run the rounds and print each, then the best speeds, the ratios of the first side to the others, and the limits."""
    runs: dict[str, list[Speeds]] = {side.name: [] for side in sides}
    reading = [read_bandwidth(args.threads)]
    for number in range(args.rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            speeds = run(side)
            runs[side.name].append(speeds)
            line = f"prefill {speeds.prefill:8.1f}  decode {speeds.decode:7.2f} tok/s"
            print(f"round {number + 1} {side.name:20}  {line}", flush=True)
        reading.append(read_bandwidth(args.threads))
    figures = [Figure(name="plain read", value=max(reading), unit="GB/s", conditions={"statistic": "best"})]
    for phase in ("prefill", "decode"):
        table = {name: np.array([getattr(speeds, phase) for speeds in taken]) for name, taken in runs.items()}
        print("\n".join(ratio_lines(phase, table)))
        figures += figures_of(phase, table)
    print(f"plain read, GB/s: best {max(reading):.1f}, median {np.median(reading):.1f}")
    for side in sides:
        rate = max(speeds.decode for speeds in runs[side.name]) / args.batch * side.weights / 1e9
        limit = args.batch * max(reading) * 1e9 / side.weights
        print(
            f"{side.name:20}  {side.weights / 1e6:.0f} MB of weights a step, at the best read at most {limit:.0f} tok/s; "
            f"its best round reads {rate:.1f} GB/s, {rate / max(reading):.0%}"
        )
        about: dict[str, Condition] = {"side": side.name}
        figures.append(Figure(name="weights of a step", value=side.weights / 1e6, unit="MB", conditions=about))
    return figures


def figures_of(phase: str, table: dict[str, NDArray[np.float64]]) -> list[Figure]:
    """Each side's best and median speed, and the ratio of the first side's to it; speeds [rounds]."""
    first = next(iter(table))
    figures = []
    for name, speeds in table.items():
        for statistic, speed, ratio in (
            ("best", float(max(speeds)), float(max(table[first]) / max(speeds))),
            ("median", float(np.median(speeds)), float(np.median(table[first] / speeds))),
        ):
            about: dict[str, Condition] = {"side": name, "statistic": statistic}
            figures.append(Figure(name=phase, value=speed, unit="tokens/s", conditions=about))
            if name != first:
                figures.append(Figure(name=f"{phase}, {first} / it", value=ratio, unit="times", conditions=about))
    return figures


def ratio_lines(phase: str, table: dict[str, NDArray[np.float64]]) -> Iterator[str]:
    """A line for each side: its best and median speed, and the ratio of the first side's to it; speeds [rounds]."""
    first = next(iter(table))
    for name, speeds in table.items():
        line = f"{phase:7}  {name:20}  best {max(speeds):8.1f}  median {np.median(speeds):8.1f} tok/s"
        if name != first:
            quartiles = ", ".join(f"{ratio:.2f}" for ratio in np.percentile(table[first] / speeds, (25, 50, 75)))
            line += f"  {first} / it: best {max(table[first]) / max(speeds):.2f}, quartiles of rounds {quartiles}"
        yield line


def run(side: Competitor) -> Speeds:
    """Run a side in a fresh process and return its speeds."""
    row = json.loads(output_of(side.command))[0]
    return Speeds(row["prefill_speed"], row["decode_speed"])


def read_bandwidth(threads: int) -> float:
    """GB/s of the machine's plain read, measured in a fresh process."""
    return float(output_of([sys.executable, "-m", "benchmarks.peers.rounds", "--threads", str(threads)]))


def output_of(command: Sequence[str]) -> str:
    """The output of a command, run in the checkout's root so that it can import `benchmarks`."""
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=CHECKOUT).stdout


def measure_bandwidth(threads: int) -> float:
    """GB/s of plain reads of SLICE bytes, in rotation through 1 GiB; the best within READING_SECONDS."""
    from concurrent.futures import ThreadPoolExecutor

    from benchmarks.kernels.cpu_attention import GIB, SLICE, best_times, reader

    buffer = np.ones(GIB // 4, np.float32)
    with ThreadPoolExecutor(threads) as pool:
        (taken,) = best_times(READING_SECONDS, reader(buffer, threads, pool))
    return SLICE / taken / 1e9


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="Print this machine's plain read bandwidth in GB/s.")
    arguments.add_argument("--threads", type=int, default=2)
    print(measure_bandwidth(arguments.parse_args().threads))
