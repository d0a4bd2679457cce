"""`enginewright eval`: the quality of engines, and their distance from a reference engine."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from enginewright.runtime.artifact.files.real_path import real_path
from enginewright.runtime.errors import RequestError
from enginewright.runtime.evaluation.candidates import open_candidates
from enginewright.runtime.evaluation.report import item_log, plot
from enginewright.runtime.evaluation.report.engine_report import Report
from enginewright.runtime.evaluation.report.summary import summarise
from enginewright.runtime.evaluation.report.table import render
from enginewright.runtime.evaluation.score import prepare
from enginewright.runtime.evaluation.score import run as run_engines
from enginewright.runtime.evaluation.suites import DEFAULT_LIMIT, SUITES, Task

REPORTS = "reports"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("engine", nargs="+", metavar="DIR", help="engine directories, side by side")
    parser.add_argument("--suite", required=True, metavar="NAME", help=f"one of {', '.join(SUITES)}")
    parser.add_argument("--level", default=Task.level, metavar="NAME", help="standard or hard (default: standard)")
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help=f"problems (default: {DEFAULT_LIMIT}), or windows of a data file (default: all)",
    )
    parser.add_argument("--seed", type=int, default=Task.seed, metavar="N", help="of problems and intervals (0)")
    parser.add_argument("--reference", metavar="DIR", help="engine to compare with: KL, agreement, divergence")
    parser.add_argument("--data", metavar="FILE", help="perplexity of a text file, or of a .jsonl of texts")
    parser.add_argument("--window", type=int, metavar="N", help="tokens of --data at a time (default: the context)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    parser.add_argument("--plot", metavar="FILE.png", help="draw quality against bytes per token and speed")
    parser.add_argument("--records", metavar="FILE.jsonl", help="write every problem's reply or every text's score")
    parser.add_argument("--no-report", action="store_true", help=f"write no DIR/{REPORTS}/eval-SUITE-LEVEL.json")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")
    parser.add_argument("--max-batch", type=int, metavar="N", help="requests at once (default: the engine's limit)")
    parser.add_argument(
        "--backend", metavar="NAME", help="engine of each directory to run (default: the first that can)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate every engine, write the reports, and print the table."""
    task = Task(
        suite=arguments.suite,
        level=arguments.level,
        limit=arguments.limit,
        seed=arguments.seed,
        data=arguments.data,
        window=arguments.window,
        threads=arguments.threads,
        max_batch=arguments.max_batch,
        backend=arguments.backend,
    )
    _check_outputs(arguments)
    candidates = open_candidates(arguments.engine, arguments.reference)
    works = prepare(task, candidates)
    has_reference = arguments.reference is not None
    scores = list(run_engines(task, candidates, works, reference=has_reference))
    report = summarise(task, scores, reference=has_reference)
    if not arguments.no_report:
        _write_reports(report, arguments.engine)
    if arguments.records is not None:
        item_log.write(scores, Path(arguments.records))
    if arguments.plot is not None:
        plot.draw(report, Path(arguments.plot))
    print(report.to_json() if arguments.json else render(report))
    return 0


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Raise unless everything that is to be written can be."""
    for flag, name in (("--plot", arguments.plot), ("--records", arguments.records)):
        if name is not None and not (os.access(Path(name).parent, os.W_OK) and not Path(name).is_dir()):
            raise RequestError(
                f"{flag} {name}: got a path that cannot be written, expected one in a folder that exists"
            )
    if arguments.plot is not None:
        plot.check(Path(arguments.plot))
    for engine in () if arguments.no_report else arguments.engine:
        if Path(engine).is_dir() and not os.access(engine, os.W_OK):
            raise RequestError(f"{engine}: cannot be written to, expected a place for {REPORTS}/; pass --no-report")


def _write_reports(report: Report, engines: list[str]) -> None:
    """Write each engine's part of the report into its own directory."""
    about = report.level if report.data is None else Path(report.data).stem
    roots = set(map(real_path, engines))
    for engine in report.engines:
        root = Path(engine.path)
        if real_path(root) in roots:  # not into a reference that is not evaluated itself
            (root / REPORTS).mkdir(exist_ok=True)
            (root / REPORTS / f"eval-{report.suite}-{about}.json").write_text(report.of(engine).to_json() + "\n")
