"""Measures adapters that are merged of two, by TaDA-R and by every baseline: the task's form and answers, and the domain's text.

    python -m benchmarks.quality.train_adapters --model MODEL --text FILE --output PAIR
    python -m benchmarks.quality.merged_adapters --model MODEL --pair PAIR --texts FILE --data HELD_OUT --cells DIR

The task's items are questions of `choice_questions` with words that no training question has. A reply counts as right if it is
the greedy one: each of its tokens, and the end of the turn, is the most probable one after those before it. It has the form if
"Result:" and a token that begins one of the four choices are. The domain's texts are windows of HELD_OUT, whose perplexity is
that of all tokens but the first. Intervals: Wilson's, Newcombe's for pairs, and bootstraps over windows.

Each candidate's scores lie in DIR and are not measured again, so a run goes on where it was, and several may share DIR with
`--candidates` apart. The table has all that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from benchmarks.quality.cache_tables import estimate_figure
from benchmarks.quality.choice_questions import FORM, Choice, make_choices
from benchmarks.quality.token_scores import show
from benchmarks.quality.train_adapters import prompt_of, read_tokenizer
from benchmarks.results_file import Condition, Figure, benchmark_parser, save
from enginewright.exporters.calibration.texts import tokens_from_file
from enginewright.exporters.methods.tada.adapter_pair import AdapterPair, read_adapters
from enginewright.exporters.methods.tada.layer_merge import Probes
from enginewright.exporters.methods.tada.merge_report import MergedLayer, depth_trends
from enginewright.exporters.methods.tada.merging import MergeJob, merge_layers, probe_pair
from enginewright.exporters.methods.tada.options import MergeOptions
from enginewright.exporters.source.checkpoint import Checkpoint, open_checkpoint
from enginewright.exporters.source.reference import load_reference
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.evaluation import intervals
from enginewright.runtime.evaluation.intervals import Estimate

NAME = "benchmarks.quality.merged_adapters"
BASE, TASK, DOMAIN, OURS = "base", "task alone", "domain alone", "TaDA-R"
CANDIDATES: dict[str, MergeOptions | None] = {
    BASE: None,
    TASK: None,
    DOMAIN: None,
    OURS: MergeOptions(),
    "TaDA-R, seed 1": MergeOptions(seed=1),
    "TaDA-R, seed 2": MergeOptions(seed=2),
    "TaDA-R, gate .5": MergeOptions(gate="const"),
    "TaDA-R, no conflicts": MergeOptions(theta=2.0),
    "TaDA-R, ramp": MergeOptions(gate="ramp"),
    "TaDA-R, scale 2": MergeOptions(scale=2.0),
    "linear, scale .5": MergeOptions(merge="linear"),
    "linear, scale 1": MergeOptions(merge="linear", scale=1.0),
    "SVD, scale .5": MergeOptions(merge="svd"),
    "SVD, scale .6": MergeOptions(merge="svd", scale=0.6),
    "SVD, scale 1": MergeOptions(merge="svd", scale=1.0),
    "TIES": MergeOptions(merge="ties"),
    "DARE-TIES": MergeOptions(merge="dare-ties"),
    "KnOTS-TIES": MergeOptions(merge="knots-ties"),
}
Changes = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""B and A by the layer's name."""


@dataclass(frozen=True, kw_only=True)
class AdapterScores:
    """One candidate's scores; `measure` creates it.

    right, form: of each item.
    nats: of each window of the domain, the sum over its tokens.
    tokens: of each window, how many count.
    """

    right: list[bool]
    form: list[bool]
    nats: list[float]
    tokens: list[int]

    @property
    def perplexity(self) -> Estimate:
        """Over all windows, with a bootstrap over them."""
        found = intervals.bootstrap(intervals.ratio(self.nats, self.tokens), len(self.nats), 0)
        return found.map(lambda nats: float(np.exp(nats)))

    def more_nats(self, other: AdapterScores) -> Estimate:
        """Nats a token more than another candidate's on the same windows."""
        own, theirs = (intervals.ratio(each.nats, each.tokens) for each in (self, other))
        return intervals.bootstrap(intervals.difference(own, theirs), len(self.nats), 0)

    def more_right(self, other: AdapterScores) -> Estimate:
        """The share of right items minus another candidate's on the same items."""
        return intervals.paired_difference(list(zip(self.right, other.right, strict=True)))


@torch.no_grad()
def score_choices(
    model: PreTrainedModel, tokenizer: Any, choices: Sequence[Choice], rows: int
) -> tuple[list[bool], list[bool]]:
    """Return of each question whether the greedy reply is the right one, and whether it has the form."""
    form = tokenizer.encode(FORM.strip(), add_special_tokens=False)
    items = []
    for choice in choices:
        prompt = prompt_of(tokenizer, choice)
        reply = tokenizer.encode(f"{choice.reply}{tokenizer.eos_token}", add_special_tokens=False)
        starts = {tokenizer.encode(f"{FORM}{each}", add_special_tokens=False)[len(form)] for each in choice.choices}
        items.append((prompt, reply, starts))
    right, formed = [False] * len(items), [False] * len(items)
    order = sorted(range(len(items)), key=lambda number: sum(map(len, items[number][:2])))
    for begin in tqdm(range(0, len(order), rows), desc="items", unit="batch", disable=None):
        own = order[begin : begin + rows]
        texts = [items[number][0] + items[number][1] for number in own]
        ids = torch.zeros(len(own), max(map(len, texts)), dtype=torch.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
        states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[no-untyped-call]
        for row, number in enumerate(own):
            prompt, reply, starts = items[number]
            wanted = states[row, len(prompt) - 1 : len(prompt) + len(reply) - 1]
            greedy = model.get_output_embeddings()(wanted).argmax(-1).tolist()  # type: ignore[no-untyped-call]
            right[number] = greedy == reply
            formed[number] = greedy[: len(form)] == form and greedy[len(form)] in starts
    return right, formed


@torch.no_grad()
def score_windows(model: PreTrainedModel, windows: torch.Tensor) -> list[float]:
    """Return the nats of each window [count, width], all tokens but the first."""
    nats = []
    for window in tqdm(windows, desc="windows", disable=None):
        logits = model(input_ids=window[None, :-1], use_cache=False).logits[0]
        nats.append(float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum")))
    return nats


@contextmanager
def changed(model: PreTrainedModel, changes: Changes) -> Iterator[None]:
    """Add B A to the weights while the context is entered."""
    weights = {f"{name}.weight": change for name, change in changes.items()}
    kept = {name: model.get_parameter(name).detach().clone() for name in weights}
    try:
        for name, (b, a) in weights.items():
            model.get_parameter(name).data += b @ a
        yield
    finally:
        for name, before in kept.items():
            model.get_parameter(name).data.copy_(before)


class Candidates:
    """The changes of weights of each candidate, with the probes kept by their seed; `main` creates it."""

    def __init__(self, checkpoint: Checkpoint, pair: AdapterPair, texts: Path, samples: int, length: int) -> None:
        self._checkpoint, self._pair, self._texts = checkpoint, pair, texts
        self._samples, self._length = samples, length
        self._probes: dict[int, Probes] = {}

    def changes(self, name: str) -> tuple[Changes, list[MergedLayer]]:
        """B and A of each layer, and the accounts of a merge; none of the base."""
        if name in (BASE, TASK, DOMAIN):
            return self._alone(name), []
        options = CANDIDATES[name]
        assert options is not None
        job = MergeJob(
            checkpoint=self._checkpoint, pair=self._pair, names=("", ""), options=options, texts=(), picture=False
        )
        probes = self._probe(options.seed) if options.is_probed else {}
        factors, layers = merge_layers(job, probes, lambda _, make: make())
        return factors, layers

    def _alone(self, name: str) -> Changes:
        sides = {each.module: {TASK: each.task, DOMAIN: each.domain}.get(name) for each in self._pair.layers}
        return {module: side.load() for module, side in sides.items() if side is not None}

    def _probe(self, seed: int) -> Probes:
        if seed not in self._probes:
            tokens = tokens_from_file(self._texts, self._checkpoint, self._samples, self._length, seed)
            sums = probe_pair(self._checkpoint, self._pair, list(tokens))
            self._probes[seed] = {
                module: (each.results("mean")[0], each.results("mean")[1]) for module, each in sums.items()
            }
        return self._probes[seed]


def table(cells: Mapping[str, AdapterScores], trends: Mapping[str, Mapping[str, float | None]]) -> str:
    """The candidates as a Markdown table, and the premise: the rank correlation of depth by projection."""
    lines = [
        "| adapter | right | form | perplexity | right minus TaDA-R | nats minus TaDA-R |",
        "|---|---|---|---|---|---|",
    ]
    ours = cells.get(OURS)
    for name, own in cells.items():
        shares = [intervals.wilson(sum(each), len(each)) for each in (own.right, own.form)]
        parts = [*(show(each.map(lambda x: 100 * x), ".1f") + " %" for each in shares), show(own.perplexity, ".2f")]
        if ours is None or name == OURS:
            parts += ["", ""]
        else:
            more = own.more_right(ours).map(lambda x: 100 * x)
            parts += [show(more, "+.1f"), show(own.more_nats(ours), "+.4f")]
        lines.append(f"| {name} | " + " | ".join(parts) + " |")
    for name, found in trends.items():
        shown = ", ".join(f"{key.rpartition('.')[2]} {value:+.2f}" for key, value in found.items() if value is not None)
        lines += ["", f"Spearman of depth and ln(domain's probe / task's), {name}: {shown}"]
    first = next(iter(cells.values()))
    return "\n".join(
        [*lines, "", f"{len(first.right)} items; {sum(first.tokens)} tokens in {len(first.tokens)} windows"]
    )


def draw(cells: Mapping[str, AdapterScores], file: Path) -> None:
    """Write a picture: right answers over the domain's perplexity, of each candidate; nothing is above and left of the best."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(picture)  # draws without a display
    axes = picture.subplots()
    for number, (name, own) in enumerate(cells.items()):
        right = intervals.wilson(sum(own.right), len(own.right)).map(lambda x: 100 * x)
        assert right.low is not None and right.high is not None
        spread = [[right.value - right.low], [right.high - right.value]]
        marker = "*" if name.startswith(OURS) else "os^Dvp"[number % 6]
        axes.errorbar(
            own.perplexity.value, right.value, yerr=spread, marker=marker, capsize=2, linestyle="", label=name
        )
    axes.set_xlabel("perplexity of the domain's text (left is better)")
    axes.set_ylabel("right answers, %")
    axes.legend(fontsize=7, ncols=2)
    picture.savefig(file, dpi=120)


def figures_of(cells: Mapping[str, AdapterScores], trends: Mapping[str, Mapping[str, float | None]]) -> list[Figure]:
    """The figures of every candidate, and the premise."""
    figures = []
    for name, own in cells.items():
        about: dict[str, Condition] = {"adapter": name}
        for kind, hits in (("right", own.right), ("form", own.form)):
            figures.append(estimate_figure(kind, "%", 100, intervals.wilson(sum(hits), len(hits)), about))
        figures.append(estimate_figure("perplexity", "perplexity", 1, own.perplexity, about))
        if OURS in cells and name != OURS:
            figures.append(estimate_figure("right minus TaDA-R", "%", 100, own.more_right(cells[OURS]), about))
            figures.append(estimate_figure("nats minus TaDA-R", "nats", 1, own.more_nats(cells[OURS]), about))
    for name, found in trends.items():
        for projection, value in found.items():
            if value is not None:
                where = {"adapter": name, "projection": projection}
                figures.append(Figure(name="depth and domain's share", value=value, unit="Spearman", conditions=where))
    return figures


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__ or "")
    parser.add_argument("--model", required=True, metavar="DIR_OR_FILE", help="the chat model")
    parser.add_argument(
        "--pair", required=True, type=Path, metavar="DIR", help="folder of the adapters task and domain"
    )
    parser.add_argument("--texts", required=True, type=Path, metavar="FILE", help="text of the domain, for the probe")
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help="held-out text of the domain")
    parser.add_argument("--cells", required=True, type=Path, metavar="DIR", help="keeps each candidate's scores")
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES), choices=CANDIDATES, metavar="NAME")
    parser.add_argument("--items", type=int, default=1000, help="questions (1000)")
    parser.add_argument("--rows", type=int, default=50, help="questions at once (50)")
    parser.add_argument("--windows", type=int, default=40, help="windows of the held-out text (40)")
    parser.add_argument("--width", type=int, default=256, help="tokens of a window (256)")
    parser.add_argument("--samples", type=int, default=32, help="texts of the probe (32)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a text of the probe (512)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw right answers over perplexity (.png, .svg)")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Measure what is missing, and print the table of all."""
    args = make_parser().parse_args(arguments)
    args.cells.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    missing = [name for name in args.candidates if not (args.cells / f"{name}.json").is_file()]
    if missing:
        measure(args, missing)
    files = {name: args.cells / f"{name}.json" for name in CANDIDATES}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
    cells = {name: AdapterScores(**each["scores"]) for name, each in found.items()}
    trends = {
        name: each["depth"]
        for name, each in found.items()
        if each["depth"] and name in (OURS, "TaDA-R, seed 1", "TaDA-R, seed 2")
    }
    print(table(cells, trends))
    if args.plot is not None:
        draw(cells, args.plot)
    save(args.results, NAME, arguments, figures_of(cells, trends))
    return 0


def measure(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Measure the candidates and keep their scores in files of `args.cells`."""
    checkpoint = open_checkpoint(args.model)
    pair = read_adapters(args.pair / "task", args.pair / "domain", checkpoint)
    candidates = Candidates(checkpoint, pair, args.texts, args.samples, args.length)
    tokenizer, model = read_tokenizer(args.model), load_reference(args.model, ())
    choices = list(islice(make_choices("held out", held_out=True), args.items))
    windows = torch.from_numpy(tokens_from_file(args.data, checkpoint, args.windows, args.width, 0))
    for name in names:
        changes, layers = candidates.changes(name)
        with changed(model, changes):
            right, form = score_choices(model, tokenizer, choices, args.rows)
            nats = score_windows(model, windows)
        scores = AdapterScores(right=right, form=form, nats=nats, tokens=[args.width - 1] * len(windows))
        partial = args.cells / f".{name}.partial"
        partial.write_text(json.dumps({"scores": vars(scores), "depth": depth_trends(layers)}))
        partial.replace(args.cells / f"{name}.json")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EnginewrightError as error:
        sys.exit(str(error))
