r"""Tokens per second of many requests with long contexts, with the full cache and with one of a fixed size, in turns.

    enginewright build --model MODEL --output FULL --weights int4 --kv-bits 16 --max-batch 16 --max-context 4608
    enginewright build --model MODEL --output EVICTING --weights int4 --kv-bits 16 --max-batch 16 --max-context 4608 \
        --apply evict:budget=512
    python -m benchmarks.speed.evicted_decoding FULL EVICTING --rows 16 --contexts 1536 4096

Both engines are loaded in one process and read the same random prompts, of lengths from the first to the second number. Then
they decode in turn, as many steps as an eviction's interval, so that each turn has one eviction of every row; the steps are
those of the engine's own loop, evictions included. Drift of the machine's speed so falls on both. A turn's rate is its tokens
by its time. Table: docs/methods/evict.md, "Size and time". Limit: weights and held tokens that a step reads.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.quality.evicted_caches import Watch
from benchmarks.results_file import Condition, Figure, benchmark_parser, save
from enginewright.runtime import Sampling, load
from enginewright.runtime.errors import EnginewrightError, UnsupportedError
from enginewright.runtime.llm import LLM
from enginewright.runtime.scheduling.step_loop import StepTiming

NAME = "benchmarks.speed.evicted_decoding"
INTERVAL = 128
STEP_TOKENS = 512


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("full", type=Path, help="engine whose cache keeps everything")
    parser.add_argument("evicting", type=Path, help="engine of the same model with evict")
    parser.add_argument("--rows", type=int, default=16, help="requests at once")
    parser.add_argument(
        "--contexts", type=int, nargs=2, default=[1536, 4096], metavar="TOKENS", help="shortest, longest"
    )
    parser.add_argument("--turns", type=int, default=4, help="of each engine")
    parser.add_argument("--steps", type=int, default=INTERVAL, help=f"of a turn ({INTERVAL})")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Let the engines take turns, and print how they differ."""
    args = make_parser().parse_args(arguments)
    longest = args.contexts[1]
    first = longest - (args.turns + 1) * args.steps  # so that the longest context ends as long as asked for
    if not 0 < args.contexts[0] <= first:
        raise UnsupportedError(
            f"--contexts: got {args.contexts[0]} {longest}, expected room for {args.turns + 1} turns; choose fewer turns"
        )
    lengths = np.linspace(args.contexts[0], first, args.rows).astype(int).tolist()
    if sum(lengths) > args.steps * (STEP_TOKENS - args.rows):
        raise UnsupportedError(f"--rows: got {args.rows}, whose prompts take more steps than a turn; choose fewer")
    with open_engine(args.full, args) as full, open_engine(args.evicting, args) as evicting:
        sides = [
            TurnTaker(name, llm, lengths, args.turns, args.steps)
            for name, llm in (("full cache", full), ("evicting", evicting))
        ]
        for turn in range(args.turns):
            for side in sides[:: 1 if turn % 2 else -1]:
                side.take_turn()
        for side in sides:
            side.stop()
    print(table(sides))
    save(args.results, NAME, arguments, figures_of(sides, args))
    return 0


def open_engine(root: Path, args: argparse.Namespace) -> LLM:
    """Load an engine with room for all rows."""
    tokens = args.rows * args.contexts[1]
    return load(
        root,
        args.threads,
        max_batch=args.rows,
        cache_tokens=tokens,
        prefill_chunk=STEP_TOKENS,
        prefix_reuse=False,
        verify=False,
    )


class TurnTaker:
    """One engine, whose loop waits between its turns; a step counts once every row decodes in it.

    rates: tokens per second of each turn.
    evicting: seconds of evictions in all turns.
    seconds: of all turns.
    held: the most bytes of tiles that were held in them.
    """

    def __init__(self, name: str, llm: LLM, lengths: Sequence[int], turns: int, steps: int) -> None:
        self.name = name
        self.rates: list[float] = []
        self.evicting, self.seconds, self.held = 0.0, 0.0, 0
        self._rows, self._steps = len(lengths), steps
        self._llm, self._watch = llm, Watch(llm)
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._stopped = self._is_warm = False
        self._times: list[float] = []
        self._evicting = 0.0
        llm.loop.observer = self._observe
        rng = np.random.default_rng(0)
        prompts = [rng.integers(3, llm.manifest.model.vocab_size, length).tolist() for length in lengths]
        tokens = (turns + 1) * steps
        sampling = Sampling(max_tokens=tokens, ignore_eos=True, model_defaults=False)
        self._handles = llm.submit_all(prompts, sampling)
        self._done.acquire()

    def take_turn(self) -> None:
        """Let the engine decode one turn, and wait for its end."""
        self._go.release()
        self._done.acquire()

    def stop(self) -> None:
        """Let the engine end its requests."""
        self._stopped = True
        for handle in self._handles:
            handle.cancel()
        self._go.release()

    def _observe(self, step: StepTiming) -> None:
        """Count a step, on the loop's thread; wait there after the first one, which does not count, and after each turn."""
        if self._stopped or step.sampled < self._rows or step.tokens != self._rows:
            return
        if self._is_warm:
            self._times.append(step.end - step.start)
            if len(self._times) < self._steps:
                return
            self._end_turn()
        self._is_warm = True
        self._done.release()
        self._go.acquire()
        self._times, self._evicting, self._watch.peak = [], self._watch.evicting, 0

    def _end_turn(self) -> None:
        """Add the turn's steps."""
        spent = sum(self._times)
        self.rates.append(self._rows * self._steps / spent)
        self.seconds += spent
        self.evicting += self._watch.evicting - self._evicting
        self.held = max(self.held, self._watch.peak)


def table(sides: Sequence[TurnTaker]) -> str:
    """The comparison as a table."""
    lines = ["| cache | tokens/s, best | tokens/s, median | evicting | MB held |", "|---|---|---|---|---|"]
    for side in sides:
        cells = (
            f"{max(side.rates):.0f} | {statistics.median(side.rates):.0f} | {100 * side.evicting / side.seconds:.1f} %"
        )
        lines.append(f"| {side.name} | {cells} | {side.held / 1e6:.0f} |")
    ratios = ratios_of(sides)
    lines.append(f"\nevicting / full: best {best_ratio(sides):.2f}, median of turns {statistics.median(ratios):.2f}")
    return "\n".join(lines)


def ratios_of(sides: Sequence[TurnTaker]) -> list[float]:
    """The ratio of the rates of each pair of neighbouring turns."""
    full, evicting = sides
    return [ours / theirs for ours, theirs in zip(evicting.rates, full.rates, strict=True)]


def best_ratio(sides: Sequence[TurnTaker]) -> float:
    """The ratio of the best rates."""
    full, evicting = sides
    return max(evicting.rates) / max(full.rates)


def figures_of(sides: Sequence[TurnTaker], args: argparse.Namespace) -> list[Figure]:
    """The figures of the table."""
    about: dict[str, Condition] = {
        "rows": args.rows,
        "contexts": f"{args.contexts[0]} to {args.contexts[1]}",
        "threads": args.threads,
    }
    ratios = ratios_of(sides)
    found = [
        Figure(name="tokens/s, evicting / full, best", value=best_ratio(sides), unit="times", conditions=about),
        Figure(
            name="tokens/s, evicting / full, median of turns",
            value=statistics.median(ratios),
            unit="times",
            conditions=about,
        ),
    ]
    for side in sides:
        own: dict[str, Condition] = {**about, "cache": side.name}
        share = 100 * side.evicting / side.seconds
        found.append(Figure(name="tokens/s, best", value=max(side.rates), unit="tokens/s", conditions=own))
        median = statistics.median(side.rates)
        found.append(Figure(name="tokens/s, median", value=median, unit="tokens/s", conditions=own))
        found.append(Figure(name="evicting, share of time", value=share, unit="%", conditions=own))
        found.append(Figure(name="most bytes of tiles", value=side.held / 1e6, unit="MB", conditions=own))
    return found


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EnginewrightError as error:
        sys.exit(str(error))
