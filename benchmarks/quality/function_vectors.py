"""Hits of steered models: function vectors by relevance, by indirect effects and of random heads, at heads and in the stream.

    python -m benchmarks.quality.function_vectors --model FILE.gguf --work DIR
    python -m benchmarks.quality.function_vectors --model FILE.gguf --work DIR --seeds 42 --tasks past opposite --no-aie

Table: docs/methods/function_vectors.md, "Measured". Questions have no demonstration; a hit is an answer whose first token ranks
first. Prompts that heads are scored on have eight demonstrations, those of indirect effects (AIE) with shuffled answers, as Todd
et al. have them. Heads are the task's own best, or the best of the mean over the tasks of the run. The layer for sums in the
stream is the best on the first training pairs. Heads by chance are drawn anew for each task and seed.

--engine is an engine of the same weights in float32 with `--apply steering`: the vectors of each task's own heads by relevance
are loaded into it, and its hits are compared with PyTorch's, item by item.

--work keeps what is done, a file for each cell, and a second run continues from there. Intervals are 95 % bootstraps over items.
The times are those of the scores alone, of one prompt, and of one pass over it. AIE runs the tokens before the last one once;
with a whole pass for each head, it would take that many passes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.quality.word_tasks import word_tasks
from benchmarks.results_file import Figure, benchmark_parser, save
from enginewright.exporters.methods.function_vectors import head_scores, steering_vectors, top_heads
from enginewright.exporters.methods.function_vectors.aie import indirect_effects
from enginewright.exporters.methods.function_vectors.extract import MEANT_SHOTS, SCORED_SHOTS, best_layer, zero_shot
from enginewright.exporters.methods.function_vectors.extraction_command import open_fast_tokenizer
from enginewright.exporters.methods.function_vectors.measure import target_ranks
from enginewright.exporters.methods.function_vectors.prompts import WordTask, divide, drawn, encode
from enginewright.exporters.methods.function_vectors.vectors import head_means, steered
from enginewright.exporters.methods.steering.vector_folder import write_vectors
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.reference import load_reference
from enginewright.runtime import LLM, Sampling, load
from enginewright.runtime.errors import EnginewrightError

NAME = "benchmarks.quality.function_vectors"
DRAWS = 2000
CONTRASTS = (
    ("DFV, relevance, global heads", "DFV, AIE, global heads"),
    ("FV, relevance, global heads", "FV, AIE, global heads"),
    ("DFV, relevance, task's heads", "DFV, AIE, task's heads"),
    ("FV, relevance, task's heads", "FV, AIE, task's heads"),
    ("DFV, relevance, task's heads", "FV, relevance, task's heads"),
    ("DFV, relevance, global heads", "FV, relevance, global heads"),
)
"""Rows whose hits are compared item by item."""
Heads = list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class VectorRun:
    """What all cells of a run share; `main` creates it.

    count: heads that make a vector.
    prompts: that scores are the mean of.
    swept: training pairs that choose the layer of a sum.
    with_aie: whether indirect effects are measured, which take a row for each head.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    work: Path
    count: int
    shots: int
    prompts: int
    swept: int
    with_aie: bool

    def cell(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what `make` makes, which is kept, so that it is made once."""
        path = self.work / f"{name.replace(' ', '_')}.json"
        if not path.exists():
            made = make()
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(made))
            partial.replace(path)
            print(f"{name}: done", file=sys.stderr, flush=True)
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def score_task(run: VectorRun, task: WordTask, seed: int) -> dict[str, Any]:
    """Scores by relevance, means, and scores by indirect effects if they are wanted, with the seconds of one prompt."""
    clean = [encode(run.tokenizer, each) for each in drawn(task, run.shots, run.prompts, seed)]
    means = head_means(run.model, [prompt.ids for prompt in clean[:MEANT_SHOTS]])
    counting = [each for each, rank in zip(clean, target_ranks(run.model, clean), strict=True) if rank <= 5]
    start = time.perf_counter()
    scores = [head_scores(run.model, each.ids, each.target, each.keys) for each in counting]
    made: dict[str, Any] = {
        "counted": len(counting),
        "means": means.tolist(),
        "relevance": (torch.stack(scores).mean(0) if scores else torch.zeros(means.shape[:2])).tolist(),
        "relevance seconds": (time.perf_counter() - start) / max(len(counting), 1),
    }
    if run.with_aie:
        corrupted = [encode(run.tokenizer, each) for each in drawn(task, run.shots, run.prompts, seed, shuffled=True)]
        start = time.perf_counter()
        target_ranks(run.model, corrupted[:1])
        made["one pass seconds"] = time.perf_counter() - start
        start = time.perf_counter()
        effects = [indirect_effects(run.model, each.ids, each.target, means) for each in corrupted]
        made |= {
            "AIE": torch.stack(effects).mean(0).tolist(),
            "AIE seconds": (time.perf_counter() - start) / len(effects),
        }
    return made


def measure_task(run: VectorRun, task: WordTask, scored: dict[str, Any], chosen: dict[str, Heads]) -> dict[str, Any]:
    """The hits of each row, an item each; rows of sums in the stream have their layer, too."""
    means = torch.tensor(scored["means"])
    train, test = (zero_shot(run.tokenizer, pairs, with_instructions=False) for pairs in (task.train, task.test))
    rows: dict[str, Any] = {"unsteered": {"hits": _hits(run.model, test)}}
    for name, heads in chosen.items():
        at_heads, whole = steering_vectors(run.model, heads, means)
        with steered(run.model, heads=at_heads):
            rows[f"DFV, {name}"] = {"hits": _hits(run.model, test)}
        if "random" in name:
            continue
        layer = best_layer(run.model, whole, train[: run.swept])
        with steered(run.model, stream={layer: whole}):
            rows[f"FV, {name}"] = {"hits": _hits(run.model, test), "layer": layer}
    return rows


def _hits(model: PreTrainedModel, prompts: Sequence[Any]) -> list[int]:
    return [int(rank == 1) for rank in target_ranks(model, prompts)]


def choose_heads(run: VectorRun, scored: dict[str, dict[str, Any]], name: str, seed: int) -> dict[str, Heads]:
    """The heads of each row for the task `name`: by relevance and AIE, its own and those of all tasks, and at random."""
    chosen: dict[str, Heads] = {}
    for kind in ("relevance", "AIE") if run.with_aie else ("relevance",):
        chosen[f"{kind}, task's heads"] = top_heads(torch.tensor(scored[name][kind]), run.count)
        everywhere = torch.tensor([each[kind] for each in scored.values()]).mean(0)
        chosen[f"{kind}, global heads"] = top_heads(everywhere, run.count)
    layers, heads = np.shape(scored[name]["relevance"])
    flat = random.Random(f"{name} {seed}").sample(range(layers * heads), run.count)
    chosen["random heads"] = [divmod(each, heads) for each in flat]
    return chosen


def interval(hits: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap of the mean over items."""
    values = np.array(hits, float)
    means = np.random.default_rng(seed).choice(values, (DRAWS, len(values))).mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


class MeasuredTasks:
    """The cells of all seeds; `main` creates it.

    rows: of each row, the hits of every task, an item each, seed after seed.
    """

    def __init__(self, run: VectorRun) -> None:
        self.run = run
        self.rows: dict[str, dict[str, list[int]]] = {}
        self._cells: list[tuple[WordTask, dict[str, Any], dict[str, Any]]] = []

    def add(self, tasks: dict[str, WordTask], seed: int) -> None:
        """Measure the cells of one seed that are not done."""
        run = self.run
        scored = {
            name: run.cell(f"scores {name} {seed}", lambda task=task: score_task(run, task, seed))  # type: ignore[misc]
            for name, task in tasks.items()
        }
        for name, task in tasks.items():
            chosen = choose_heads(run, scored, name, seed)
            kept = run.cell(
                f"hits {name} {seed} of {len(tasks)}",
                lambda task=task, name=name, chosen=chosen: measure_task(run, task, scored[name], chosen),  # type: ignore[misc]
            )
            for row, found in kept.items():
                self.rows.setdefault(row, {}).setdefault(name, []).extend(found["hits"])
            self._cells.append((task, scored[name], kept))

    def time_figures(self) -> list[Figure]:
        """The mean seconds of one prompt's scores, and of one pass over it."""
        kinds = ("relevance", "AIE", "one pass") if self.run.with_aie else ("relevance",)
        means = {kind: float(np.mean([scored[f"{kind} seconds"] for _, scored, _ in self._cells])) for kind in kinds}
        return [
            Figure(name="one prompt's scores", value=value, unit="s", conditions={"by": kind})
            for kind, value in means.items()
        ]

    def compare(self, llm: LLM, row: str) -> list[bool]:
        """Of every item of every cell, whether an engine with the row's vectors hits what PyTorch hits, and misses what it misses."""
        is_same = list[bool]()
        for task, scored, kept in self._cells:
            means = torch.tensor(scored["means"])
            heads = top_heads(torch.tensor(scored["relevance"]), self.run.count)
            at_heads, whole = steering_vectors(self.run.model, heads, means)
            tensors = {f"dfv.{layer}": vector.numpy() for layer, vector in at_heads.items()}
            with tempfile.TemporaryDirectory() as folder:
                write_vectors(
                    Path(folder),
                    {**tensors, "fv": whole.numpy()},
                    task="vector",
                    model={"name": "", "sha256": ""},
                    layer=kept[row].get("layer", 0),
                    more={},
                )
                llm.load_vector(Path(folder))
            prompts = zero_shot(self.run.tokenizer, task.test, with_instructions=False)
            sampling = Sampling(max_tokens=1, ignore_eos=True, temperature=0, vector="vector")
            done = llm.generate([list(prompt.ids) for prompt in prompts], sampling)
            hits = [each.token_ids[0] == prompt.target for each, prompt in zip(done, prompts, strict=True)]
            is_same += [hit == bool(known) for hit, known in zip(hits, kept[row]["hits"], strict=True)]
        return is_same


def compare_engine(measured: MeasuredTasks, engine: str) -> list[Figure]:
    """How many items the engine hits as PyTorch does, for the place in which it adds vectors."""
    with load(engine, torch.get_num_threads()) as llm:
        layout = next(each.vectors for each in llm.manifest.conditions.values() if each.vectors is not None)
        row = f"{'DFV' if layout.at == 'heads' else 'FV'}, relevance, task's heads"
        is_same = measured.compare(llm, row)
    about: dict[str, str | int | float] = {"row": row, "items": len(is_same), "at": layout.at}
    return [Figure(name="items as in PyTorch", value=float(np.mean(is_same)), unit="share", conditions=about)]


def figures(rows: dict[str, dict[str, list[int]]]) -> list[Figure]:
    """The share of hits of each row: of each task, and of the mean over all items."""
    found = []
    for row, tasks in rows.items():
        every = [hit for hits in tasks.values() for hit in hits]
        for task, hits in {**tasks, "all": every}.items():
            found.append(
                Figure(
                    name="hits",
                    value=float(np.mean(hits)),
                    unit="share",
                    conditions={"row": row, "task": task, "items": len(hits)},
                    interval=interval(hits),
                )
            )
    return found


def contrasts(rows: dict[str, dict[str, list[int]]]) -> list[Figure]:
    """The share of hits that one row has more than another, over all items of both."""
    found = []
    for one, other in CONTRASTS:
        if one in rows and other in rows:
            pairs = [zip(rows[one][task], rows[other][task], strict=True) for task in rows[one]]
            more = [a - b for pair in pairs for a, b in pair]
            about: dict[str, str | int | float] = {"row": one, "than": other, "items": len(more)}
            value = float(np.mean(more))
            found.append(Figure(name="more hits", value=value, unit="share", conditions=about, interval=interval(more)))
    return found


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint of any format")
    parser.add_argument("--work", required=True, type=Path, metavar="DIR", help="keeps the cells that are done")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="of these tasks (all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44], metavar="N")
    parser.add_argument("--heads", type=int, default=8, metavar="K", help="that make a vector (8)")
    parser.add_argument("--shots", type=int, default=8, metavar="N", help="demonstrations of a prompt (8)")
    parser.add_argument("--prompts", type=int, default=SCORED_SHOTS, metavar="N", help="that are scored (25)")
    parser.add_argument("--swept", type=int, default=40, metavar="N", help="training pairs that choose the layer (40)")
    parser.add_argument("--items", type=int, metavar="N", help="pairs of a task at most (all)")
    parser.add_argument("--no-aie", action="store_true", help="leave indirect effects out")
    parser.add_argument("--engine", metavar="ENGINE", help="whose hits are compared with PyTorch's")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the cells that are not done, and print the table."""
    arguments = make_parser().parse_args(argv)
    known = word_tasks()
    names = arguments.tasks or list(known)
    if unknown := [name for name in names if name not in known]:
        print(f"error: --tasks: got {unknown[0]}, expected some of {', '.join(known)}", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    try:
        checkpoint = open_checkpoint(arguments.model)
        run = VectorRun(
            model=load_reference(checkpoint, ()),
            tokenizer=open_fast_tokenizer(checkpoint),
            work=arguments.work,
            count=arguments.heads,
            shots=arguments.shots,
            prompts=arguments.prompts,
            swept=arguments.swept,
            with_aie=not arguments.no_aie,
        )
        measured = MeasuredTasks(run)
        for seed in arguments.seeds:
            measured.add({name: divide(name, known[name][: arguments.items], seed) for name in names}, seed)
        found = figures(measured.rows) + contrasts(measured.rows) + measured.time_figures()
        if arguments.engine is not None:
            found += compare_engine(measured, arguments.engine)
    except EnginewrightError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    _print_table(found)
    save(arguments.results, NAME, sys.argv[1:] if argv is None else argv, found)
    return 0


def _print_table(found: Sequence[Figure]) -> None:
    for figure in found:
        where = " | ".join(str(value) for value in figure.conditions.values())
        spread = "" if figure.interval is None else f" | {figure.interval[0]:.2f} to {figure.interval[1]:.2f}"
        print(f"| {figure.name} | {where} | {figure.value:.3g}{spread} |")


if __name__ == "__main__":
    sys.exit(main())
