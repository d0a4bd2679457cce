"""Time saved by several tokens a step: engines with extra heads and the plain engine answer in turn.

    python -m benchmarks.speed.emission_speed --engines PLAIN ENGINE ... --threads 1

    python -m enginewright.exporters.source.synthetic --like qwen2-0.5b --output CHECKPOINT
    python -m benchmarks.speed.emission_speed --checkpoint CHECKPOINT --work DIR --weights int4 --storage int8 --threads 2

Table: docs/benchmarks.md, "Extra heads: speed". The first form measures engines as they are. The second form builds them,
unless they are in DIR, with heads of random weights, because speed does not depend on the guesses. Their classifier always
says 2, and they emit no extra token (tau 1), one (k 2) or two (k 3).

Limit: (1 + E[L]) / (1 + r E[L]) times the plain engine's speed, where E[L] is the number of extra tokens a step and r the
bytes of a head divided by those of the plain engine's weights. This assumes that a forward of several tokens costs as much as
that of one token. The last line prints its cost on this machine, and the column `priced` has the bound with that cost:
(1 + E[L]) / (cost of the tokens of a mean step + r E[L]).

Requests run one at a time, greedily: held-out problems if the engine has a tokenizer, otherwise random tokens. All engines are
loaded in one process and answer in turn, `--rounds` times. Decoding is deterministic, so step i of a request is the same work
in every round. The column `best` adds up the best time of each step, from the end of the step before to its own end; `median`
has the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.results_file import Condition, Figure, benchmark_parser, save
from enginewright.exporters.build import build
from enginewright.exporters.methods.clp.head_set import Backbone, HeadSet, HeadShape, write_head_set
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.recipe import Recipe, parse_method, parse_weights
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime import Sampling, load
from enginewright.runtime.backends.session import PackedStep
from enginewright.runtime.evaluation.problems import KINDS, held_out_problems
from enginewright.runtime.llm import LLM
from enginewright.runtime.scheduling.step_loop import StepTiming

NAME = "benchmarks.speed.emission_speed"
Floats = NDArray[np.float64]

FORCED = {"0 extra": "tau=1", "1 extra": "k=2", "2 extra": "k=3"}
MOST, CONTEXT, PROBES = 3, 128, 20  # tokens of a forward, tokens before it, and how often it runs in a round


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument(
        "--engines", type=Path, nargs="+", metavar="DIR", help="the plain engine, then those with heads"
    )
    parser.add_argument("--checkpoint", type=Path, help="checkpoint from which engines are built")
    parser.add_argument("--work", type=Path, help="folder for these engines")
    parser.add_argument("--weights", default="float32", help="as for `enginewright build`")
    parser.add_argument("--storage", default="float32", help="storage of the heads, float32 or int8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--requests", type=int, default=4, help="number of requests; a multiple of 4 for problems")
    parser.add_argument("--new-tokens", type=int, default=60, help="most new tokens of a request")
    parser.add_argument("--rounds", type=int, default=8)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Build what is missing, run the rounds, and compare."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if (args.engines is None) == (args.checkpoint is None or args.work is None):
        parser.error("pass either --engines, or --checkpoint and --work")
    roots = args.engines or make_engines(args.checkpoint, args.work, args.weights, args.storage)
    with ExitStack() as stack:
        options: dict[str, Any] = {"max_batch": 1, "prefix_reuse": False, "verify": False}
        llms = [stack.enter_context(load(root, args.threads, **options)) for root in roots]
        prompts = make_prompts(llms[0], args.requests)
        sides = [TimedEngine(root, llm, prompts, args.new_tokens) for root, llm in zip(roots, llms, strict=True)]
        forwards = []
        for number in range(args.rounds + 1):
            for side in sides[:: 1 if number % 2 else -1]:
                side.run(keep=number > 0)  # the first round allocates
            forwards.append(time_forwards(llms[0]))
    save(args.results, NAME, arguments, report(sides, np.min(forwards, axis=0)))
    return 0


def make_engines(checkpoint: Path, work: Path, weights: str, storage: str) -> list[Path]:
    """Build the engines that do not exist yet, and return their folders, the plain engine's first."""
    heads = work / "heads"
    if not heads.exists():
        source = open_checkpoint(str(checkpoint))
        size, vocab = int(source.config.hidden_size), int(source.config.vocab_size)
        shape = HeadShape(hidden_size=size, vocab_size=vocab, k=MOST, head_hidden=size // 2, classes=MOST)
        rng = np.random.default_rng(0)
        tensors = {n: 0.02 * rng.standard_normal(s, np.float32) for n, s in shape.tensors().items()}
        tensors["classifier.weight"][:] = 0
        tensors["classifier.bias"][:] = (0, 0, 5)
        backbone = Backbone(name=source.name, sha256=hash_of(source))
        write_head_set(heads, HeadSet(shape=shape, backbone=backbone), tensors)
    specs = {"plain": None, **{n: f"clp:heads={heads},storage={storage},{option}" for n, option in FORCED.items()}}
    for name, spec in specs.items():
        if not (work / name).exists():
            methods = () if spec is None else (parse_method(spec),)
            build(str(checkpoint), work / name, Recipe(weights=parse_weights(weights), apply=methods), "onnxruntime")
    return [work / name for name in specs]


def make_prompts(llm: LLM, count: int) -> list[list[int]]:
    """Held-out problems as prompts if the engine has a tokenizer, otherwise random tokens."""
    if llm.tokenizer is None:
        drawn: list[list[int]] = (
            np.random.default_rng(0).integers(1, llm.manifest.model.vocab_size, (count, 32)).tolist()
        )
        return drawn
    problems = [p for kind in KINDS for p in held_out_problems(kind, "standard", count // len(KINDS), seed=0)]
    return [llm.apply_chat_template([{"role": "user", "content": p.question}]) for p in problems]


@dataclass(frozen=True)
class Totals:
    """The decode steps of an engine in all requests: their number, the tokens they decided, and the tokens they computed."""

    steps: int
    decided: int
    computed: int


class TimedEngine:
    """One engine and the times of its steps; created by `main`.

    name: the folder's name.
    bytes: the bytes of the engine's graph and weights.
    heads: the number of extra heads.
    """

    def __init__(self, root: Path, llm: LLM, prompts: list[list[int]], new_tokens: int) -> None:
        self.name = root.name
        self.bytes = sum(file.size for file in llm.manifest.graphs["decoder"].files)
        self.heads = int(llm.manifest.decoding.get("k", 1)) - 1
        self._llm, self._prompts = llm, prompts
        self._sampling = Sampling(max_tokens=new_tokens, model_defaults=False)
        self._times: list[list[Floats]] = [[] for _ in prompts]
        self._totals: list[Totals] = []

    def run(self, *, keep: bool) -> None:
        """Answer every prompt once.

        keep: record the times of the steps.
        """
        for prompt, times in zip(self._prompts, self._times, strict=True):
            steps: list[StepTiming] = []
            self._llm.loop.observer = steps.append
            (completion,) = self._llm.generate([prompt], self._sampling)
            time.sleep(0.001)  # the last step reports after its request has ended
            self._llm.loop.observer = None
            ends = np.array([step.end for step in steps])
            if keep:
                times.append(np.diff(ends))
                after = steps[1:]
                decided = len(completion.token_ids) - steps[0].decided  # the last step may decide tokens beyond the end
                self._totals.append(Totals(len(after), decided, sum(s.tokens for s in after)))

    @property
    def totals(self) -> Totals:
        """The totals of one round."""
        once = self._totals[: len(self._prompts)]
        return Totals(sum(t.steps for t in once), sum(t.decided for t in once), sum(t.computed for t in once))

    def per_token(self) -> tuple[float, Floats]:
        """Seconds per token, from each step's best time and in each round [rounds]."""
        best = sum(float(np.min(times, axis=0).sum()) for times in self._times)
        rounds = np.sum([[each.sum() for each in times] for times in self._times], axis=0)
        return best / self.totals.decided, rounds / self.totals.decided


def time_forwards(llm: LLM) -> list[float]:
    """The best seconds of a forward of 1 .. MOST tokens while the engine is idle."""
    tables = llm.loop.scheduler.tables
    assert tables.grow(np.array([CONTEXT])), "the cache is too small"
    tables.advance(np.array([CONTEXT]))
    assert tables.grow(np.array([MOST])), "the cache is too small"
    best = []
    for count in range(1, MOST + 1):
        tokens, starts = np.arange(count), np.array([0, count], np.int32)
        step = PackedStep(tokens + 7, tokens + CONTEXT, starts, tokens)
        times = []
        for _ in range(PROBES):
            begin = time.perf_counter()
            llm.loop.session.run(step)
            times.append(time.perf_counter() - begin)
        best.append(min(times))
    tables.release(0)
    return best


def report(sides: list[TimedEngine], forwards: Floats) -> list[Figure]:
    """Print the table and return its figures.

    forwards: forwards[t - 1] is the seconds of a forward of t tokens.
    """
    figures = []
    plain, *others = sides
    best, rounds = plain.per_token()
    totals = plain.totals
    print(f"{plain.name}: {best * totals.decided / totals.steps * 1e3:.3f} ms a step, {totals.decided} tokens")
    print(
        f"{'engine':12} {'tokens/step':>11} {'r':>6} {'ms a step':>9} {'best':>6} {'median':>6} {'formula':>7} {'priced':>6}"
    )
    for side in others:
        best_side, rounds_side = side.per_token()
        totals = side.totals
        extra = totals.decided / totals.steps - 1
        r = (side.bytes - plain.bytes) / side.heads / plain.bytes
        priced = np.interp(totals.computed / totals.steps, np.arange(1, MOST + 1), forwards / forwards[0])
        print(
            f"{side.name:12} {1 + extra:11.3f} {r:6.3f} {best_side * (1 + extra) * 1e3:9.3f} {best / best_side:6.2f} "
            f"{np.median(rounds / rounds_side):6.2f} {(1 + extra) / (1 + r * extra):7.2f} "
            f"{(1 + extra) / (priced + r * extra):6.2f}"
        )
        about: dict[str, Condition] = {"engine": side.name, "tokens a step": 1 + extra, "r": r}
        for name, speed in (
            ("speed-up, best", best / best_side),
            ("speed-up, median", float(np.median(rounds / rounds_side))),
            ("formula", (1 + extra) / (1 + r * extra)),
            ("formula with forwards' cost", float((1 + extra) / (priced + r * extra))),
        ):
            figures.append(Figure(name=name, value=speed, unit="times", conditions=about))
    costs = ", ".join(f"{cost:.2f} for {count}" for count, cost in enumerate(forwards / forwards[0], 1))
    print(f"a forward of the plain engine costs, by its tokens: {costs}")
    for count, cost in enumerate((forwards / forwards[0]).tolist(), 1):
        figures.append(Figure(name="forward, cost", value=cost, unit="times", conditions={"tokens": count}))
    return figures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
