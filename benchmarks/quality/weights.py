"""Perplexity by bits and method of quantised weights: one engine for each cell, all calibrated on the same text.

    python examples/training/text_corpus.py > CALIBRATION
    python -m benchmarks.quality.weights --model examples/tiny-text --text CALIBRATION --data examples/tiny-text/held_out.txt --json CELLS

Table: docs/benchmarks.md, "Quantised weights: perplexity". The decoder's linear layers are quantised; embedding, output
projection and activations stay float32, so that a cell shows the loss of its weights alone. --json keeps the cells that are
done, and a second run continues from there. --methods and --bits choose some of the cells; `--methods list` prints the names.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import Condition, Figure, benchmark_parser, save
from enginewright.exporters.build import build
from enginewright.exporters.methods.piso.method import Config
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.weights.registry import choose_storage
from enginewright.runtime.evaluation.candidates import open_candidates
from enginewright.runtime.evaluation.score import prepare, run
from enginewright.runtime.evaluation.suites import Task

NAME = "benchmarks.quality.weights"
METHODS: dict[str, dict[str, Any]] = {
    "rounding, absmax": {"correction": "none", "scales": "absmax"},
    "rounding, data-free": {"correction": "none", "scales": "mse"},
    "rounding, PiSO": {"correction": "none"},
    "GPTQ, absmax": {"scales": "absmax", "interleave": "layer"},
    "GPTQ, data-free": {"scales": "mse", "interleave": "group"},
    "GPTQ, PiSO first": {"interleave": "decoupled"},
    "GPTQ, PiSO per layer": {"interleave": "layer"},
    "GPTQ, PiSO per group": {"interleave": "group"},
    "Qronos, absmax": {"correction": "qronos", "scales": "absmax", "interleave": "layer"},
    "Qronos, PiSO per layer": {"correction": "qronos", "interleave": "layer"},
    "Qronos, PiSO per group": {"correction": "qronos", "interleave": "group"},
    "GPTQ, PiSO per group, signed": {"interleave": "group", "signed": True},
    "Qronos, PiSO per group, signed": {"correction": "qronos", "interleave": "group", "signed": True},
}
FLOAT = "float32"


def main(arguments: Sequence[str]) -> int:
    """Measure the cells that are missing, and print the table."""
    args = parse_arguments(arguments)
    if args.methods == ["list"]:
        print(*METHODS, sep="\n")
        return 0
    done: dict[str, float] = json.loads(args.json.read_text()) if args.json.is_file() else {}
    cells = {FLOAT: None, **{name_of(*cell): cell for cell in grid(args)}}
    for name, cell in cells.items():
        if name not in done:
            done[name] = perplexity(args, None if cell is None else settings(args, *cell))
            args.json.write_text(json.dumps(done, indent=1))
            print(f"{name}: {done[name]:.2f}", file=sys.stderr, flush=True)
    print(table(args, done))
    save(args.results, NAME, arguments, figures_of(args, done))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True, help="calibration text")
    parser.add_argument("--data", required=True, help="text whose perplexity is measured")
    parser.add_argument("--json", required=True, type=Path, help="file that keeps the cells")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME")
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3, 2])
    parser.add_argument("--group-sizes", nargs="+", type=int, default=[32, 0], help="0: one scale a row")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    return parser


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments, after a check that every method is known."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.methods if name not in METHODS and name != "list"]:
        parser.error(f"--methods: got {unknown[0]!r}, expected some of: {'; '.join(METHODS)}")
    return args


def grid(args: argparse.Namespace) -> list[tuple[str, int, int]]:
    """The method, bits and group size of every cell."""
    return [(method, bits, size) for size in args.group_sizes for bits in args.bits for method in args.methods]


def name_of(method: str, bits: int, group_size: int) -> str:
    return f"{method} | {bits} bits | {f'groups of {group_size}' if group_size else 'whole rows'}"


def settings(args: argparse.Namespace, method: str, bits: int, group_size: int) -> Config:
    fixed = {"text": args.text, "sequences": args.sequences, "length": args.length, "signed": False}
    return Config(bits=bits, group_size=group_size, **{**fixed, **METHODS[method]})


def perplexity(args: argparse.Namespace, config: Config | None) -> float:
    """Build an engine, score the data with it, and return its perplexity."""
    exact = choose_storage("float32", {"compute": "float32"})
    with tempfile.TemporaryDirectory() as folder:
        work = f"{folder}/work"
        applied = () if config is None else (Applied("piso", Config(**{**vars(config), "work": work})),)
        build(args.model, Path(folder) / "engine", Recipe(apply=applied, weights=exact), "onnxruntime")
        candidates = open_candidates([f"{folder}/engine"], None)
        task = Task(suite="perplexity", data=args.data)
        (score,) = run(task, candidates, prepare(task, candidates), reference=False)
        assert score.text_scores is not None  # this suite always has scores
        return float(np.exp(np.concatenate(score.text_scores.nats).mean()))


def figures_of(args: argparse.Namespace, done: dict[str, float]) -> list[Figure]:
    """The perplexities of the table's cells and of the float32 model."""
    figures = [Figure(name="perplexity", value=done[FLOAT], unit="perplexity", conditions={"weights": FLOAT})]
    for method, bits, size in grid(args):
        about: dict[str, Condition] = {"method": method, "bits": bits, "group size": size or "whole rows"}
        cell = done[name_of(method, bits, size)]
        figures.append(Figure(name="perplexity", value=cell, unit="perplexity", conditions=about))
    return figures


def table(args: argparse.Namespace, done: dict[str, float]) -> str:
    """The cells as a Markdown table, one row per method."""
    columns = [(bits, size) for size in args.group_sizes for bits in args.bits]
    heads = [f"{bits} bits, {f'groups of {size}' if size else 'whole rows'}" for bits, size in columns]
    lines = ["| method | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for method in args.methods:
        cells = [done[name_of(method, *column)] for column in columns]
        lines.append(f"| {method} | " + " | ".join(f"{c:.2f}" if c < 1e4 else f"{c:.1e}" for c in cells) + " |")
    return "\n".join([f"float32: {done[FLOAT]:.2f}", "", *lines])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
