"""Right answers of a model whose cache has a fixed size, by the score and the allocation of its budget.

    python -m benchmarks.quality.evicted_caches --model MODEL --json CELLS --policies full score=rkv,budget=384 score=streaming

A policy is the options of `--apply evict`, or `full`, which keeps everything. With `kvarn` or `kvarn+` before it the cache is
that of `--apply kvarn`. Every policy answers the same hard problems,
greedily. The table has the right answers with Wilson's interval, the differences from the full cache and from the first policy
after it with Newcombe's interval for pairs, the most bytes of the cache that requests held at once, and the share of the time
that evictions took. Table: docs/methods/evict.md, "Quality". --json keeps the policies that are done: the same command goes on
from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.cache_tables import estimate_figure
from benchmarks.results_file import Figure, benchmark_parser, save
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.evaluation import intervals
from enginewright.runtime.evaluation.answers import ask
from enginewright.runtime.evaluation.candidates import open_candidates
from enginewright.runtime.evaluation.intervals import Estimate
from enginewright.runtime.evaluation.problems import KINDS, held_out_problems
from enginewright.runtime.evaluation.questions import make_questions
from enginewright.runtime.llm import LLM
from enginewright.runtime.loader import load

NAME = "benchmarks.quality.evicted_caches"
FULL = "full"
CODES = "kvarn"
Cells = dict[str, dict[str, Any]]
"""Of each policy: `right`, for every problem, `kinds`, `tokens`, `peak` bytes, `seconds`, `evicting` seconds."""


def main(arguments: Sequence[str]) -> int:
    """Measure the policies that are missing, and print the table."""
    args = make_parser().parse_args(arguments)
    done: Cells = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for policy in args.policies:
        if policy not in done:
            done[policy] = measure(args, policy)
            args.json.write_text(json.dumps(done))
            right = sum(done[policy]["right"])
            print(f"{policy}: {right} of {len(done[policy]['right'])}", file=sys.stderr, flush=True)
    chosen = {policy: done[policy] for policy in args.policies}
    print(table(chosen))
    save(args.results, NAME, arguments, figures_of(chosen))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("--model", required=True, help="the checkpoint that engines are built of")
    parser.add_argument(
        "--policies", nargs="+", required=True, metavar="OPTIONS", help="of --apply evict, or full; kvarn+ before it"
    )
    parser.add_argument("--json", required=True, type=Path, help="file that keeps what is measured")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of problems: {', '.join(KINDS)} (all)")
    parser.add_argument("--count", type=int, default=150, metavar="N", help="problems of each kind (150)")
    parser.add_argument("--rows", type=int, default=32, metavar="N", help="requests at once (32)")
    parser.add_argument("--context", type=int, default=2560, metavar="N", help="tokens of a request (2560)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    return parser


def measure(args: argparse.Namespace, policy: str) -> dict[str, Any]:
    """Build the policy's engine, and let it answer the problems."""
    with tempfile.TemporaryDirectory() as folder:
        root = build(args, policy, Path(folder) / "engine")
        candidate = open_candidates([str(root)], None)[0]
        problems = [p for kind in args.kinds.split(",") for p in held_out_problems(kind, "hard", args.count, args.seed)]
        questions = make_questions(candidate, problems, args.context)
        with load(root, args.threads, max_batch=args.rows, prefix_reuse=False) as llm:
            watch = Watch(llm)
            answers = ask(llm, questions, policy)
    return {
        "right": [answer.correct for answer in answers.answers],
        "kinds": [question.problem.kind for question in questions],
        "tokens": answers.tokens,
        "peak": watch.peak,
        "seconds": answers.seconds,
        "evicting": watch.evicting,
    }


class Watch:
    """Watches an engine at work.

    peak: the most bytes of tiles that requests held at once, encoded and exact ones.
    evicting: seconds spent on evictions.
    """

    def __init__(self, llm: LLM) -> None:
        self.peak, self.evicting = 0, 0.0
        self._llm, self._tables = llm, llm.loop.scheduler.tables
        self._sizes = [
            [llm.manifest.cache.layers[int(layer)].tile_bytes for layer in group._layers]
            for group in self._tables._groups
        ]
        self._whole = self._tables.free_tiles
        self._exact = sum(each.exact_tiles * each.kv_heads * each.exact_bytes for each in llm.manifest.cache.layers)
        self._commit, self._evict_due = llm.loop.scheduler.commit, llm.loop.scheduler.evict_due
        llm.loop.scheduler.commit = self._counted  # type: ignore[method-assign]
        llm.loop.scheduler.evict_due = self._timed  # type: ignore[method-assign]

    def _counted(self, step: Any, emission: Any) -> None:
        """Count the tiles at a step's end, while requests that end in it still hold theirs."""
        held = [whole - free for whole, free in zip(self._whole, self._tables.free_tiles, strict=True)]
        pools = sum(count * sum(sizes) for count, sizes in zip(held, self._sizes, strict=True))
        self.peak = max(self.peak, pools + self._exact * len(self._llm.loop.scheduler.running))
        self._commit(step, emission)

    def _timed(self, session: Any) -> None:
        start = time.perf_counter()
        self._evict_due(session)
        self.evicting += time.perf_counter() - start


def build(args: argparse.Namespace, policy: str, output: Path) -> Path:
    """Build the engine of a policy, with float32 weights and halves in the cache."""
    from enginewright.exporters.build import build as build_engine
    from enginewright.exporters.recipe import Recipe, parse_method, parse_weights

    names = [f"evict:{part}" for part in policy.removeprefix(CODES).lstrip("+").split("+") if part not in ("", FULL)]
    methods = tuple(map(parse_method, [*([CODES] if policy.startswith(CODES) else []), *names]))
    recipe = Recipe(
        apply=methods, weights=parse_weights("float32"), kv_bits=16, max_batch=args.rows, max_context=args.context
    )
    build_engine(args.model, output, recipe, "onnxruntime")
    return output


def share(cell: dict[str, Any], kind: str | None = None) -> Estimate:
    """The share of right answers, of all problems or of one kind."""
    own = [right for right, of in zip(cell["right"], cell["kinds"], strict=True) if kind in (None, of)]
    return intervals.wilson(sum(own), len(own))


def minus(cell: dict[str, Any], other: dict[str, Any]) -> Estimate:
    """The share of a cell minus that of another, of the same problems."""
    return intervals.paired_difference(list(zip(cell["right"], other["right"], strict=True)))


def table(cells: Cells) -> str:
    """The measurements as a table."""
    kinds = list(dict.fromkeys(next(iter(cells.values()))["kinds"]))
    full, first = cells.get(FULL), next((cell for name, cell in cells.items() if name != FULL), None)
    lines = [f"| policy | right | {' | '.join(kinds)} | minus full | minus the first policy | peak MB | evicting |"]
    lines.append("|---" * (len(kinds) + 6) + "|")
    for name, cell in cells.items():
        row = [name, *(_percent(share(cell, kind)) for kind in (None, *kinds))]
        row += ["" if other is None or other is cell else _points(minus(cell, other)) for other in (full, first)]
        row += [f"{cell['peak'] / 1e6:.1f}", f"{100 * cell['evicting'] / cell['seconds']:.1f} %"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def figures_of(cells: Cells) -> list[Figure]:
    """The figures of the table."""
    found = []
    for name, cell in cells.items():
        about: dict[str, Any] = {"policy": name, "problems": len(cell["right"])}
        found.append(estimate_figure("right", "%", 100, share(cell), about))
        for kind in dict.fromkeys(cell["kinds"]):
            found.append(estimate_figure("right", "%", 100, share(cell, kind), {**about, "kind": kind}))
        found.append(Figure(name="peak of the cache", value=cell["peak"] / 1e6, unit="MB", conditions=about))
        for other in (FULL, next((each for each in cells if each != FULL), FULL)):
            if other in cells and other != name:
                difference = minus(cell, cells[other])
                found.append(estimate_figure("right, difference", "points", 100, difference, {**about, "minus": other}))
    return found


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.1f} [{100 * (share.low or 0):.1f}, {100 * (share.high or 0):.1f}]"


def _points(difference: Estimate) -> str:
    low, high = difference.low or 0.0, difference.high or 0.0
    return f"{100 * difference.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EnginewrightError as error:
        sys.exit(f"evicted_caches: {error}")
