"""Cost of vectors and adapters of requests: engines with and without them take steps in turn.

    python -m enginewright.exporters.source.synthetic --like qwen2-0.5b --output CHECKPOINT
    python -m benchmarks.speed.request_weights --checkpoint CHECKPOINT --work DIR --weights int4 --threads 2

Table: docs/methods/adapters.md, "Cost". A step decodes one token in each of --rows rows, each with --context tokens in its
cache. Sides: the plain engine, twice, so that chance shows; an engine with a vector at every layer, for rows without and with
vectors; an engine with adapters at every linear layer, for rows without one and with --adapters different ones, each of
--rank. Values are random: speed does not depend on them.

All engines are loaded in one process, and decode in turn, in an order that reverses every turn. The place of a session's
memory makes it a few percent faster or slower for its whole life, so every round loads all of them anew, each first in some
of the rounds. The ratios are medians over rounds of the sides' median steps, with 95 % bootstrap intervals over rounds.

Limit: an adapter reads its factors once a step, and adds their products. Where A and B of all layers have p numbers, a row
adds 2 p operations to about 2 P of a model of P weights in its blocks; the last line prints p / P.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.results_file import Condition as Given
from benchmarks.results_file import Figure, benchmark_parser, save
from benchmarks.speed.turns import measure
from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe, parse_method, parse_weights
from enginewright.runtime import load
from enginewright.runtime.artifact.decoder_graph import ports_of_condition
from enginewright.runtime.backends.session import PackedStep
from enginewright.runtime.llm import LLM

NAME = "benchmarks.speed.request_weights"
VECTORS, ADAPTERS = "steering", "adapter"
SIDES = {  # name -> engine, and whether rows name entries
    "plain": ("plain", False),
    "plain again": ("again", False),
    "vectors at every layer, none named": (VECTORS, False),
    "vectors at every layer, all rows": (VECTORS, True),
    "adapters, none named": (ADAPTERS, False),
    "adapters, all rows": (ADAPTERS, True),
}
WARM, TURN = 1, 6  # untimed and timed steps of a turn


def main(arguments: Sequence[str]) -> int:
    """Build what is missing, run the rounds, and compare."""
    args = make_parser().parse_args(arguments)
    methods = {
        "plain": (),
        VECTORS: (f"steering:capacity={args.adapters}",),
        ADAPTERS: (f"adapters:capacity={args.adapters},rank={args.rank}",),
    }
    for name, apply in methods.items():
        if not (args.work / name).exists():
            recipe = Recipe(
                apply=tuple(map(parse_method, apply)), weights=parse_weights(args.weights), max_batch=args.rows
            )
            build(str(args.checkpoint), args.work / name, recipe, "onnxruntime")
    rounds = []
    engines = ["plain", "again", VECTORS, ADAPTERS]
    for number in range(args.rounds):
        first = number % len(engines)
        with ExitStack() as stack:
            opened = {}
            for name in engines[first:] + engines[:first]:
                root = args.work / ("plain" if name == "again" else name)
                opened[name] = stack.enter_context(load(root, args.threads, prefix_reuse=False, verify=False))
            sides = {
                name: Side(opened[engine], args.rows, args.context, named=args.adapters if is_named else 0)
                for name, (engine, is_named) in SIDES.items()
            }
            share = added_share(opened[ADAPTERS])
            rounds.append(measure(sides, args.turns, warm=WARM, timed=TURN))
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    figures = report(np.array([[each[name] for each in rounds] for name in SIDES]), args.rows)
    print(f"numbers of one adapter of rank {args.rank} / numbers of the model: {100 * share:.2f} %")
    save(args.results, NAME, arguments, figures)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the engines")
    parser.add_argument("--weights", default="int4", help="as for `enginewright build`")
    parser.add_argument("--rows", type=int, default=16, help="rows of a step (16)")
    parser.add_argument("--adapters", type=int, default=8, help="different vectors and adapters in a step (8)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8, help="loads of every engine")
    parser.add_argument("--turns", type=int, default=3, help="turns of each side in a round")
    return parser


class Side:
    """A loaded engine that decodes one token a row, over rows that hold `context` tokens; several sides may share an engine.

    named: how many entries rows name, one after another; 0: none.
    """

    def __init__(self, llm: LLM, rows: int, context: int, *, named: int) -> None:
        tables = llm.loop.scheduler.tables
        if not tables.held.any():
            assert tables.grow(np.full(rows, context)), "the cache is too small"
            tables.advance(np.full(rows, context))
            assert tables.grow(np.ones(rows, np.int64)), "the cache is too small"
        self._session = llm.loop.session
        self._step = PackedStep(
            np.arange(rows) + 7,
            np.full(rows, context),
            np.arange(rows + 1, dtype=np.int32),
            np.arange(rows),
            conditions=_name_entries(llm, rows, named) if named else {},
        )

    def step(self) -> float:
        """Decode the token after the context once more; return the seconds."""
        begin = time.perf_counter()
        self._session.run(self._step)
        return time.perf_counter() - begin


def _name_entries(llm: LLM, rows: int, named: int) -> Mapping[str, NDArray[Any]]:
    """Fill entries with random values, and return the arrays with which each row names one."""
    ((name, condition),) = llm.manifest.conditions.items()
    rng = np.random.default_rng(0)
    for number in range(named):
        values = {
            tensor: rng.normal(0, 0.01, spec.shape).astype(spec.dtype) for tensor, spec in condition.tensors.items()
        }
        llm.add_condition(name, f"{number}", values)
    index, scale = ports_of_condition(name, condition)[:2]
    return {index.name: np.arange(rows, dtype=np.int32) % named + 1, scale.name: np.ones(rows, np.float32)}


def added_share(llm: LLM) -> float:
    """The numbers of one adapter over those of the model."""
    (condition,) = llm.manifest.conditions.values()
    return sum(int(np.prod(spec.shape)) for spec in condition.tensors.values()) / llm.manifest.model.parameters


def report(times: np.ndarray, rows: int) -> list[Figure]:
    """Print and return each side's tokens per second, and their share of the plain engine's.

    times: [sides, rounds, steps] in seconds.
    """
    figures = []
    rng = np.random.default_rng(0)
    medians = np.median(times, axis=2)
    print("| | tokens per second, best, median | of plain, best | of plain, median round |\n|---|---|---|---|")
    for name, steps, each in zip(SIDES, times, medians, strict=True):
        about: dict[str, Given] = {"side": name}
        best, median = rows / float(steps.min()), rows / float(np.median(steps))
        ratios = 100 * medians[0] / each
        low, high = np.percentile(np.median(rng.choice(ratios, (2000, len(ratios))), axis=1), [2.5, 97.5])
        share, interval = float(np.median(ratios)), (float(low), float(high))
        figures += [
            Figure(name="best step", value=best, unit="tokens/s", conditions=about),
            Figure(name="median step", value=median, unit="tokens/s", conditions=about),
            Figure(name="of plain, best", value=100 * times[0].min() / steps.min(), unit="%", conditions=about),
            Figure(name="of plain, median", value=share, unit="%", conditions=about, interval=interval),
        ]
        print(
            f"| {name} | {best:.0f}, {median:.0f} | {100 * times[0].min() / steps.min():.1f} % | {share:.1f} % "
            f"[{low:.1f}, {high:.1f}] |"
        )
    return figures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
