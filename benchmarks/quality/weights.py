"""Perplexity and KL by bits and method of quantised weights: one engine for each cell, all calibrated on the same text.

    python examples/training/text_corpus.py > CALIBRATION
    python -m benchmarks.quality.weights --model examples/tiny-text --text CALIBRATION --data examples/tiny-text/held_out.txt --json CELLS
    python -m benchmarks.quality.weights --model FILE.gguf --text CALIBRATION --data TEXT --json CELLS --forms int8 int4 --block 512

Tables: docs/methods/piso.md, "Perplexity"; docs/benchmarks/real-models.md. With a method, the decoder's linear layers are
quantised; embedding, output projection and activations stay float32, so that a cell shows the loss of its weights alone. --forms
adds engines of a stored form as `build --weights` makes them: those round embedding, output projection and, unless the form says
otherwise, activations, too. The reference is the float32 engine of the same checkpoint.

--json keeps the cells that are done, and a second run continues from there, inside a cell as well: PiSO keeps its results in the
user's cache. --methods and --bits choose some of the cells; `--methods list` prints the names. Intervals are 95 % bootstraps over
draws: windows of the text, or --block positions of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.cache_tables import estimate_figure
from benchmarks.quality.token_scores import KeepLogits, Logits, ScoreAgainst, TokenScores, mean_of, show
from benchmarks.results_file import Condition, Figure, benchmark_parser, save
from enginewright.exporters.build import build
from enginewright.exporters.methods.piso.method import Config
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.recipe import Recipe, parse_weights
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.evaluation.candidates import open_candidates
from enginewright.runtime.evaluation.documents import read_documents
from enginewright.runtime.evaluation.intervals import Estimate
from enginewright.runtime.evaluation.texts import Text, document_texts
from enginewright.runtime.loader import load

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
EXACT = "float32:compute=float32"  # what a method leaves, and activations, stay as they are


@dataclass(frozen=True, kw_only=True)
class Cell:
    """An engine of the table; created by `cells_of`.

    name: of the cell, in the file that keeps them.
    conditions: what distinguishes it, for the results.
    recipe: makes its engine.
    """

    name: str
    conditions: dict[str, Condition]
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The sums of a cell's scores over the tokens of each draw; `score` creates it, --json keeps it.

    tokens: the number of tokens.
    nats, exact_nats: the negative log-likelihood, and that of the float32 engine.
    kl: the KL divergence from the float32 engine in nats.
    agreed: the tokens with the float32 engine's most probable token.
    """

    tokens: list[int]
    nats: list[float]
    exact_nats: list[float]
    kl: list[float]
    agreed: list[int]

    @property
    def perplexity(self) -> Estimate:
        """The perplexity."""
        return mean_of(self.nats, self.tokens).map(np.exp)

    @property
    def more_nats(self) -> Estimate:
        """The nats per token minus those of the float32 engine."""
        more = [ours - exact for ours, exact in zip(self.nats, self.exact_nats, strict=True)]
        return mean_of(more, self.tokens)

    @property
    def mean_kl(self) -> Estimate:
        """The mean KL divergence from the float32 engine in nats."""
        return mean_of(self.kl, self.tokens)

    @property
    def top1(self) -> float:
        """The share of tokens with the float32 engine's most probable token."""
        return sum(self.agreed) / sum(self.tokens)


def main(arguments: Sequence[str]) -> int:
    """Measure the cells that are missing, and print the tables."""
    args = parse_arguments(arguments)
    if args.methods == ["list"]:
        print(*METHODS, sep="\n")
        return 0
    done = read_cells(args.json)
    cells = cells_of(args)
    missing = [cell for cell in cells if cell.name not in done]
    for cell, found in measure(args, missing):
        done[cell.name] = found
        write_cells(args.json, done)
        print(f"{cell.name}: {found.perplexity.value:.3f}", file=sys.stderr, flush=True)
    print(table(args, cells, done))
    save(args.results, NAME, arguments, figures_of(cells, done))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True, help="calibration text")
    parser.add_argument("--data", required=True, help="text whose perplexity is measured")
    parser.add_argument("--json", required=True, type=Path, help="file that keeps the cells")
    parser.add_argument("--forms", nargs="*", default=[], metavar="FORM", help="stored forms to measure, too")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), metavar="NAME")
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3, 2])
    parser.add_argument("--group-sizes", nargs="+", type=int, default=[32, 0], help="0: one scale a row")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--window", type=int, default=1024, help="tokens of --data at a time (1024)")
    parser.add_argument("--windows", type=int, metavar="N", help="the first N windows alone (default: all)")
    parser.add_argument("--block", type=int, default=0, help="positions that are one draw (0: a window)")
    parser.add_argument("--max-context", type=int, help="of the engines (default: the model's)")
    return parser


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments, after a check that every method and form is known."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.methods if name not in METHODS and name != "list"]:
        parser.error(f"--methods: got {unknown[0]!r}, expected some of: {'; '.join(METHODS)}")
    try:
        for form in args.forms:
            parse_weights(form)
    except EnginewrightError as error:
        parser.error(f"--forms: {error}")
    return args


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """Every cell: the float32 engine, then stored forms, then methods by group size and bits."""
    cells = [
        Cell(
            name=form,
            conditions={"weights": form},
            recipe=Recipe(weights=parse_weights(EXACT if form == FLOAT else form), max_context=args.max_context),
        )
        for form in (FLOAT, *args.forms)
    ]
    for size in args.group_sizes:
        for bits in args.bits:
            for method in args.methods:
                applied = (Applied("piso", settings(args, method, bits, size)),)
                cells.append(
                    Cell(
                        name=name_of(method, bits, size),
                        conditions={"method": method, "bits": bits, "group size": size or "whole rows"},
                        recipe=Recipe(apply=applied, weights=parse_weights(EXACT), max_context=args.max_context),
                    )
                )
    return cells


def name_of(method: str, bits: int, group_size: int) -> str:
    return f"{method} | {bits} bits | {f'groups of {group_size}' if group_size else 'whole rows'}"


def settings(args: argparse.Namespace, method: str, bits: int, group_size: int) -> Config:
    fixed = {"text": args.text, "sequences": args.sequences, "length": args.length, "signed": False}
    return Config(bits=bits, group_size=group_size, **{**fixed, **METHODS[method]})


def measure(args: argparse.Namespace, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Scores]]:
    """Yield the scores of each cell; the float32 engine is built first, and its logits lie on disk meanwhile."""
    if not cells:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = make_engine(args, cells_of(args)[0], folder)
        candidate = open_candidates([str(reference)], None)[0]
        texts = document_texts(candidate, read_documents(Path(args.data)), args.data, args.window)[: args.windows]
        exact = []
        with load(reference) as llm:
            for number, text in enumerate(texts):
                shape = (len(text.tokens) - 1, llm.manifest.model.vocab_size)
                exact.append(np.memmap(folder / f"{number}.float32", np.float32, "w+", shape=shape))
                llm.score([text.tokens[:-1]], [KeepLogits(exact[-1])])
        for cell in cells:
            engine = reference if cell.name == FLOAT else make_engine(args, cell, folder)
            yield cell, score(engine, texts, exact, args.block)


def make_engine(args: argparse.Namespace, cell: Cell, folder: Path) -> Path:
    """Build the cell's engine in the folder; the one before it is replaced, unless it is the reference."""
    output = folder / ("reference" if cell.name == FLOAT else "engine")
    build(args.model, output, cell.recipe, "onnxruntime", overwrite=True, trial="none")
    return output


def score(engine: Path, texts: Sequence[Text], exact: Sequence[Logits], block: int) -> Scores:
    """Score the texts; exact: of each text the float32 engine's logits."""
    draws: dict[int, list[TokenScores]] = {}
    with load(engine) as llm:
        for text, logits in zip(texts, exact, strict=True):
            scoring = ScoreAgainst(text, logits)
            llm.score([text.tokens[:-1]], [scoring])
            for piece in scoring.scores().cut(block):
                draws.setdefault(piece.draw, []).append(piece)
    parts = draws.values()
    return Scores(
        tokens=[sum(len(each.kl) for each in draw) for draw in parts],
        nats=[float(sum(each.nats.sum() for each in draw)) for draw in parts],
        exact_nats=[float(sum(each.exact_nats.sum() for each in draw)) for draw in parts],
        kl=[float(sum(each.kl.sum() for each in draw)) for draw in parts],
        agreed=[int(sum(each.agreed.sum() for each in draw)) for draw in parts],
    )


def read_cells(file: Path) -> dict[str, Scores]:
    """The cells of an earlier run; none if there is no file."""
    return {name: Scores(**cell) for name, cell in json.loads(file.read_text()).items()} if file.is_file() else {}


def write_cells(file: Path, done: dict[str, Scores]) -> None:
    """Write the cells completely or not at all."""
    staged = file.with_name(file.name + ".part")
    staged.write_text(json.dumps({name: vars(cell) for name, cell in done.items()}))
    staged.replace(file)


def figures_of(cells: Sequence[Cell], done: dict[str, Scores]) -> list[Figure]:
    """The figures of every cell."""
    figures = []
    for cell in cells:
        found, about = done[cell.name], cell.conditions
        figures.append(estimate_figure("perplexity", "perplexity", 1, found.perplexity, about))
        if cell.name != FLOAT:
            figures.append(estimate_figure("more than float32", "nats", 1, found.more_nats, about))
            figures.append(estimate_figure("mean KL", "nats", 1, found.mean_kl, about))
            figures.append(Figure(name="same top token", value=100 * found.top1, unit="%", conditions=about))
    return figures


def table(args: argparse.Namespace, cells: Sequence[Cell], done: dict[str, Scores]) -> str:
    """Two Markdown tables: perplexities with one row per method, and all figures with one row per cell."""
    columns = [(bits, size) for size in args.group_sizes for bits in args.bits]
    heads = [f"{bits} bits, {f'groups of {size}' if size else 'whole rows'}" for bits, size in columns]
    lines = ["| method | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for method in args.methods:
        found = [done[name_of(method, *column)].perplexity.value for column in columns]
        lines.append(f"| {method} | " + " | ".join(f"{c:.2f}" if c < 1e4 else f"{c:.1e}" for c in found) + " |")
    tokens, draws = sum(done[FLOAT].tokens), len(done[FLOAT].tokens)
    rows = ["| weights | perplexity | nats more | mean KL, nats | same top token |", "|---|---|---|---|---|"]
    for cell in cells:
        own = done[cell.name]
        parts = (show(own.perplexity, ".3f"), show(own.more_nats, "+.3f"), show(own.mean_kl, ".3g"))
        rows.append(f"| {cell.name.replace(' | ', ', ')} | " + " | ".join(parts) + f" | {100 * own.top1:.1f} % |")
    return "\n".join([*(lines if args.methods else ()), "", f"{tokens} tokens, {draws} draws", "", *rows])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EnginewrightError as error:
        sys.exit(str(error))
