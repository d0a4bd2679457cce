"""Unlearning of invented authors: what can still be extracted, and what is lost besides, by method and seed.

    python -m benchmarks.unlearning.taught_model --model MODEL --output TAUGHT
    python -m benchmarks.unlearning.forgetting --model TAUGHT --text HELD_OUT.txt --json CELLS --work FOLDER

TAUGHT knows --authors of 20 questions each. The last --share of them is forgotten, the others are retained, and every cell is
one run of `enginewright tune nsru` with its method. Table: docs/methods/nsru.md, "What it does".

ES: extraction strength, teacher-forced and greedy. reworded: of the questions in other words, which no run trains on. relearned:
after --relearn steps of ordinary training on the forgotten answers. ROUGE-L: of greedy generations with the true answer, or the
safe one (safe). facts: right answers to questions about the real world that TAUGHT answers. perplexity: of --text.

--json keeps the cells that are done, and --work the run in progress: a second command goes on from there. --cells and --seeds
choose some; `--cells list` prints the names. Intervals are 95 % bootstraps over questions; seeds of one question stay together.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.cache_tables import estimate_figure
from benchmarks.quality.token_scores import mean_of, show
from benchmarks.results_file import Figure, benchmark_parser, save
from benchmarks.unlearning.invented_authors import AUTHORS, AuthorQuestion, asked, author_questions, split_authors
from benchmarks.unlearning.unlearning_scores import ScoredModel, Scorer
from enginewright.exporters.methods.nsru.unlearn import unlearn
from enginewright.exporters.methods.nsru.unlearn_command import read_texts
from enginewright.exporters.methods.nsru.unlearn_options import UnlearnOptions
from enginewright.exporters.methods.unfinished_run import UNFINISHED
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.evaluation.intervals import Estimate

NAME = "benchmarks.unlearning.forgetting"
BASE, OURS = "taught model", "NSRU"
CELLS: dict[str, dict[str, Any]] = {
    BASE: {},
    "gradient ascent": {"method": "gradient-ascent"},
    "GradDiff": {"method": "graddiff"},
    "NPO": {"method": "npo"},
    "LoRA, same losses": {"method": "lora"},
    OURS: {},
    "NSRU, query-last": {"at": "query-last"},
    "NSRU, all-tokens": {"at": "all-tokens"},
    "NSRU, centred": {"centre": True},
    "NSRU without L_und": {"forget_weight": 0.0},
    "NSRU without L_ret": {"retain_weight": 0.0},
    "NSRU without L_safe": {"safe_weight": 0.0},
}
COLUMNS = {
    "ES forget": "forget_strength",
    "reworded": "reworded_strength",
    "relearned": "relearned_strength",
    "ES retain": "retain_strength",
    "R-L forget": "forget_rouge",
    "R-L retain": "retain_rouge",
    "R-L safe": "safe_rouge",
    "facts": "facts",
}

Scores = dict[str, list[float]]
"""Of a cell and seed: for each column the value of every question; nats and tokens of the held-out text by window."""


def main(arguments: Sequence[str]) -> int:
    """Measure the cells that are missing, and print the table."""
    args = parse_arguments(arguments)
    if args.cells == ["list"]:
        print(*CELLS, sep="\n")
        return 0
    torch.set_num_threads(args.threads)
    done: dict[str, Scores] = json.loads(args.json.read_text()) if args.json.is_file() else {}
    scorer = make_scorer(args)
    for seed in args.seeds:
        for cell in args.cells:
            key = f"{cell} | seed {seed}"
            if key in done or (cell == BASE and seed != args.seeds[0]):
                continue
            done[key] = measure(args, scorer, cell, seed, done)
            staged = args.json.with_name(args.json.name + ".part")
            staged.write_text(json.dumps(done))
            staged.replace(args.json)
            print(f"{key}: ES {np.mean(done[key]['forget_strength']):.3f}", file=sys.stderr, flush=True)
    print(table(args, done))
    save(args.results, NAME, arguments, figures_of(args, done))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint that knows the authors")
    parser.add_argument("--text", required=True, type=Path, help="held-out text for the perplexity")
    parser.add_argument("--json", required=True, type=Path, help="file that keeps the cells")
    parser.add_argument("--work", required=True, type=Path, metavar="DIR", help="folder for adapters in training")
    parser.add_argument("--authors", type=int, default=AUTHORS, metavar="N", help="as the model was taught")
    parser.add_argument("--share", type=float, default=0.05, help="of the authors that are forgotten (0.05)")
    parser.add_argument("--retained", type=int, metavar="N", help="retained questions that runs get, at random (all)")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--forget-cap", type=float, metavar="X", help="of the runs with all three losses (none)")
    parser.add_argument(
        "--relearn", type=int, default=20, metavar="N", help="steps of training on the forgotten answers"
    )
    parser.add_argument(
        "--questions", type=int, default=40, metavar="N", help="retained questions and facts that are scored"
    )
    parser.add_argument("--windows", type=int, default=20, metavar="N", help="of 256 tokens of --text")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    return parser


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments, after a check that every cell is known."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.cells if name not in CELLS and name != "list"]:
        parser.error(f"--cells: got {unknown[0]!r}, expected some of {', '.join(CELLS)}")
    return args


def make_scorer(args: argparse.Namespace) -> Scorer:
    """The questions that every cell is scored on."""
    forget, retain = split_authors(author_questions(authors=args.authors), args.share)
    chosen = np.random.default_rng(0).permutation(len(retain))[: args.questions]
    return Scorer(
        model=args.model,
        forget=forget,
        retain=[retain[i] for i in sorted(chosen.tolist())],
        facts=args.questions,
        text=args.text.read_text(encoding="utf-8"),
        windows=args.windows,
        relearn=args.relearn,
    )


def measure(args: argparse.Namespace, scorer: Scorer, cell: str, seed: int, done: dict[str, Scores]) -> Scores:
    """Train the cell's adapter, and score the model with it."""
    base = done.get(f"{BASE} | seed {args.seeds[0]}")
    known = None if base is None else [value > 0 for value in base["facts"]]
    if cell == BASE:
        return scorer.score(ScoredModel(args.model, None), known)
    files = write_files(args, scorer.has_template)
    texts = read_texts(args.model, *files, "", 256)
    shared = {"steps": args.steps, "batch": args.batch, "rate": args.rate, "seed": seed}
    if CELLS[cell].get("method", "nsru") in {"nsru", "lora"}:
        shared["forget_cap"] = args.forget_cap
    options = UnlearnOptions(**shared, **CELLS[cell])
    output = args.work / "adapter"
    if output.exists() and not (output / UNFINISHED).exists():
        shutil.rmtree(output)
    report = unlearn(args.model, texts, output, options)
    found = scorer.score(ScoredModel(args.model, output), known)
    for part in ("k", "residual_retain", "residual_forget"):
        found[part] = [float(each[part]) for each in report["modules"]]
    return found


def write_files(args: argparse.Namespace, has_template: bool) -> tuple[Path, Path]:
    """Write both files of the command."""
    args.work.mkdir(parents=True, exist_ok=True)
    forget, retain = split_authors(author_questions(authors=args.authors), args.share)
    chosen = np.random.default_rng(1).permutation(len(retain))[: args.retained]
    parts = forget, [retain[i] for i in sorted(chosen.tolist())]
    paths = args.work / "forget.jsonl", args.work / "retain.jsonl"
    for path, part, keys in zip(paths, parts, (("answer", "safe"), ("answer",)), strict=True):
        path.write_text("".join(f"{json.dumps(_line(each, keys, has_template))}\n" for each in part))
    return paths


def _line(each: AuthorQuestion, keys: Sequence[str], has_template: bool) -> dict[str, str]:
    return {"prompt": asked(each.prompt, has_template), **{key: getattr(each, key) for key in keys}}


def _means(done: dict[str, Scores], cell: str) -> dict[str, NDArray[np.float64]]:
    """Of each column, every question's mean over the seeds that are done; nats and tokens by window; empty without a seed."""
    own = [scores for key, scores in done.items() if key.partition(" | ")[0] == cell]
    parts = {**COLUMNS, "nats": "nats", "tokens": "tokens"}
    return {title: np.mean([scores[part] for scores in own], axis=0) for title, part in parts.items()} if own else {}


def estimates(done: dict[str, Scores], cell: str) -> dict[str, Estimate]:
    """Each column's mean over questions and seeds, and the perplexity; empty where no seed is done."""
    means = _means(done, cell)
    found = {
        title: mean_of(means[title].tolist(), [1] * len(means[title])) for title in COLUMNS if len(means.get(title, ()))
    }
    if means:
        found["perplexity"] = mean_of(means["nats"].tolist(), means["tokens"].astype(int).tolist()).map(np.exp)
    return found


def differences(done: dict[str, Scores], cell: str) -> dict[str, Estimate]:
    """NSRU minus the cell, of the same questions, and in nats a token; empty where either is not done."""
    ours, theirs = _means(done, OURS), _means(done, cell)
    if not ours or not theirs:
        return {}
    found = {}
    for title in COLUMNS:
        apart = ours[title] - theirs[title]
        if len(apart):
            found[title] = mean_of(apart.tolist(), [1] * len(apart))
    found["nats"] = mean_of((ours["nats"] - theirs["nats"]).tolist(), ours["tokens"].astype(int).tolist())
    return found


def figures_of(args: argparse.Namespace, done: dict[str, Scores]) -> list[Figure]:
    """The figures of every cell that is done, and NSRU's differences from it."""
    units = {"perplexity": "perplexity", "nats": "nats"}
    found = []
    for cell in args.cells:
        for title, value in estimates(done, cell).items():
            found.append(estimate_figure(title, units.get(title, "share"), 1, value, {"cell": cell}))
        for title, value in differences(done, cell).items() if cell not in {BASE, OURS} else ():
            about = {"cell": cell, "difference": "NSRU minus the cell"}
            found.append(estimate_figure(title, units.get(title, "share"), 1, value, about))
    return found


def table(args: argparse.Namespace, done: dict[str, Scores]) -> str:
    """Two Markdown tables with a row for each cell that is done: what it has, and what NSRU has more."""
    titles = [*COLUMNS, "perplexity"]
    lines = [f"| method | seeds | {' | '.join(titles)} |", "|---|---|" + "---|" * len(titles)]
    for cell in args.cells:
        if found := estimates(done, cell):
            seeds = sum(key.partition(" | ")[0] == cell for key in done)
            shown = (
                show(found[title], ".1f" if title == "perplexity" else ".3f") if title in found else ""
                for title in titles
            )
            lines.append(f"| {cell} | {seeds} | {' | '.join(shown)} |")
    titles = [*COLUMNS, "nats"]
    lines += ["", f"| NSRU minus | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
    for cell in args.cells:
        if cell not in {BASE, OURS} and (found := differences(done, cell)):
            shown = (show(found[title], "+.3f") if title in found else "" for title in titles)
            lines.append(f"| {cell} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EnginewrightError as error:
        sys.exit(str(error))
