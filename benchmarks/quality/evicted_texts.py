r"""Perplexity, KL and kept attention on long texts under cache policies, next to the bytes that the cache holds.

    python -m benchmarks.topic_texts topics.txt prompts.jsonl
    enginewright tune reasonalloc --model MODEL --data prompts.jsonl --output curve.json
    python -m benchmarks.quality.evicted_texts --model MODEL --data topics.txt --windows 4096:8 --json CELLS \
        --policies full score=rkv,budget=512 score=streaming,budget=512

A policy is the options of `--apply evict`, or `full`, which keeps everything. Engines read the same windows of the text, one
at a time and teacher-forced; a text counts as generated, so tokens leave after every interval. All figures are of the second
half of each window: perplexity, KL(full cache || policy) in nats a token, and the share of the full cache's softmax weights on
tokens that the policy held when they were computed, as the mean over layers, KV heads and sampled queries. Intervals are 95 %
bootstraps over windows; differences are of the same windows, from the first policy with an equal budget.

Table: docs/methods/evict.md, "On text". --json keeps the policies that are done: the same command goes on from there. An engine
is built once for each kind of graphs that scores are made of, with float32 weights and halves in the cache; what differs otherwise
is written into its manifest. Attention with windows, and with sinks or bounds of its own, is not measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.cache_codecs import Floats
from benchmarks.quality.evicted_cells import FULL, TextCell, figures_of, read_cells, table, write_cells
from benchmarks.quality.full_reads import FullRead, read_full, second_half
from benchmarks.quality.kept_attention import WatchKept, kept_share
from benchmarks.quality.token_scores import ScoreAgainst, TokenScores
from benchmarks.results_file import benchmark_parser, save
from enginewright.exporters.build import build
from enginewright.exporters.methods.evict.method import Config
from enginewright.exporters.methods.reasonalloc.curve import open_curve
from enginewright.exporters.recipe import Recipe, parse_method, parse_weights
from enginewright.runtime.cache.policies.token_scores import SCORES
from enginewright.runtime.errors import EnginewrightError, UnsupportedError
from enginewright.runtime.evaluation.candidates import open_candidates
from enginewright.runtime.evaluation.documents import read_documents
from enginewright.runtime.evaluation.texts import Text
from enginewright.runtime.loader import load

NAME = "benchmarks.quality.evicted_texts"


def main(arguments: Sequence[str]) -> int:
    """Measure the policies that are missing, and print the table."""
    args = parse_arguments(arguments)
    done = read_cells(args.json)
    for policy, cell in measure(args, [policy for policy in args.policies if policy not in done]):
        done[policy] = cell
        write_cells(args.json, done)
        print(f"{policy}: KL {cell.mean_kl.value:.4f}", file=sys.stderr, flush=True)
    chosen = {policy: done[policy] for policy in args.policies}
    print(table(chosen))
    save(args.results, NAME, arguments, figures_of(chosen))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("--model", required=True, help="the checkpoint that engines are built of")
    parser.add_argument("--data", required=True, metavar="FILE", help="the text")
    parser.add_argument(
        "--windows", nargs="+", required=True, metavar="TOKENS:COUNT", help="windows, one after another"
    )
    parser.add_argument("--policies", nargs="+", required=True, metavar="OPTIONS", help="of --apply evict, or full")
    parser.add_argument("--json", required=True, type=Path, help="file that keeps what is measured")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep one model's engines and what its full cache reads there, to go on",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    return parser


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments, with `windows` as the tokens of each one."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    try:
        pairs = [each.split(":") for each in args.windows]
        args.windows = [int(tokens) for tokens, count in pairs for _ in range(int(count))]
    except ValueError:
        parser.error(f"--windows: got {' '.join(args.windows)}, expected tokens and a count, such as 4096:8")
    return args


def measure(args: argparse.Namespace, policies: Sequence[str]) -> Iterator[tuple[str, TextCell]]:
    """Yield the cell of each policy; the full cache reads first, and its logits lie on disk meanwhile."""
    if not policies:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = args.keep or Path(name)
        full = make_engine(args, FULL, folder)
        texts = cut_texts(full, Path(args.data), args.windows)
        reads = read_full(full, texts, folder, args.threads)
        for policy in policies:
            if policy == FULL:
                yield policy, cell_of_full(texts, reads)
            else:
                yield policy, read_evicting(args, make_engine(args, policy, folder), texts, reads)


def make_engine(args: argparse.Namespace, policy: str, folder: Path) -> Path:
    """Build the engine of a policy's score, unless it is there; write the policy into its manifest."""
    applied = None if policy == FULL else parse_method(f"evict:{policy}")
    config: Any = None if applied is None else applied.config
    plain = None if config is None else of_graphs(config)
    root = folder / (FULL if plain is None else f"{plain.score}-{plain.window}-{plain.alpha}")
    if not root.is_dir():
        recipe = Recipe(
            apply=() if applied is None else (dataclasses.replace(applied, config=plain),),
            weights=parse_weights("float32"),
            kv_bits=16,
            max_batch=1,
            max_context=max(args.windows),
        )
        build(args.model, root, recipe, "onnxruntime", trial="none")
    if config is not None:
        manifest = json.loads((root / "manifest.json").read_text())
        manifest["cache"]["policy"] = policy_of(config)
        (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def of_graphs(config: Config) -> Config:
    """Return options whose graphs give all that the score reads: those with equal budgets, and R-KV's where that does."""
    score, rkv = SCORES[config.scored], SCORES["rkv"]
    if not score.needs or (score.needs, score.scope, score.group) == (rkv.needs, rkv.scope, rkv.group):
        return Config(window=config.window) if score.needs else Config()
    return dataclasses.replace(config, allocation="uniform", curve=None)


def policy_of(config: Config) -> dict[str, Any]:
    """Return the policy as an engine's manifest has it."""
    demand = () if config.curve is None else tuple(open_curve(Path(config.curve)).shares.values())
    return {"kind": "evict", **dataclasses.asdict(config.policy(demand))}


def cut_texts(engine: Path, data: Path, windows: Sequence[int]) -> list[Text]:
    """Return windows of the text's tokens, one after another; a window's first token is not scored."""
    candidate = open_candidates([str(engine)], None)[0]
    ids = [token for each in read_documents(data) for token in candidate.encode(each.text, str(data)).ids]
    if sum(windows) > len(ids):
        raise UnsupportedError(f"{data}: got {len(ids)} tokens, expected {sum(windows)} for the windows; choose fewer")
    ends = np.cumsum(windows).tolist()
    pairs = enumerate(zip(windows, ends, strict=True))
    return [Text(tokens=tuple(ids[end - size : end]), given=1, size=0, draw=draw) for draw, (size, end) in pairs]


def cell_of_full(texts: Sequence[Text], reads: Sequence[FullRead]) -> TextCell:
    """Return the cell of the full cache itself, of what it has read."""
    cell = CellSums()
    for text, read in zip(texts, reads, strict=True):
        scoring = ScoreAgainst(text, read.logits, second_half(text))
        scoring(0, read.logits)
        cell.add(text, scoring.scores(), kept_share(read.weights, read.queries, ()), read.peak)
    return cell.sum_up()


def read_evicting(args: argparse.Namespace, engine: Path, texts: Sequence[Text], reads: Sequence[FullRead]) -> TextCell:
    """Let a policy's engine read the texts."""
    with load(engine, args.threads, max_batch=1, prefix_reuse=False, verify=False) as llm:
        cell, watch = CellSums(), WatchKept(llm)
        for text, read in zip(texts, reads, strict=True):
            watch.rows.clear()
            watch.peak = 0
            scoring = ScoreAgainst(text, read.logits, second_half(text))
            llm.score([text.tokens[:-1]], [scoring])
            cell.add(text, scoring.scores(), kept_share(read.weights, read.queries, watch.rows), watch.peak)
        return cell.sum_up()


class CellSums:
    """Sums of one engine's scores, text by text, to a TextCell."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {
            name: [] for name in ("windows", "tokens", "nats", "exact_nats", "kl", "queries", "mass")
        }
        self._shares: list[Floats] = []
        self._peaks: dict[str, int] = {}

    def add(self, text: Text, scores: TokenScores, share: Floats, peak: int) -> None:
        """Add a text; share[layers, heads, queries]: the kept share of attention; peak: the most bytes held."""
        window = len(text.tokens)
        self._peaks[str(window)] = max(self._peaks.get(str(window), 0), peak)
        for name, found in (
            ("windows", window),
            ("tokens", len(scores.kl)),
            ("nats", float(scores.nats.sum())),
            ("exact_nats", float(scores.exact_nats.sum())),
            ("kl", float(scores.kl.sum())),
            ("queries", share.shape[2]),
            ("mass", float(share.mean(axis=(0, 1)).sum())),
        ):
            self._sums[name].append(found)
        self._shares.append(share)

    def sum_up(self) -> TextCell:
        """Return the cell."""
        heads = np.concatenate(self._shares, axis=2).mean(axis=2).tolist()
        return TextCell(**self._sums, heads=heads, peaks=self._peaks)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EnginewrightError as error:
        sys.exit(f"evicted_texts: {error}")
