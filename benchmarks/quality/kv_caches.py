"""Right answers of a model over caches of few bits, or the errors of the caches' keys and values.

    python -m benchmarks.quality.kv_caches --model examples/tiny-reasoner --level hard --count 200
    python -m benchmarks.quality.kv_caches --model examples/tiny-reasoner --level hard --count 10 --norms

    python -m benchmarks.quality.kv_caches --model FILE.gguf --norms --data TEXT --window 8192 --block 1024 --every 8

Tables: docs/methods/kvarn.md, "Quality"; docs/benchmarks/real-models.md. A cache is fp16, or METHOD-kXvY with X bits for keys and Y bits for values. It is
simulated over one engine with halves in its cache, so that sinks, newest tile and attention are the same for all. --engine
adds an engine directory that keeps such a cache itself.

Without --norms, the model answers the same held-out problems over every cache. The table has the right answers with Wilson's
interval, and the differences from fp16 and from KVarN at the same bits with Newcombe's interval for pairs and McNemar's exact
probability. With --norms, problems with their solutions, or windows of --data, are read block by block; the tables have KL and
perplexity, and the errors of keys, values and attention, static and accumulated, by place in the text and by layer. --json writes everything that was measured, including whether each problem was answered
right; --results writes the figures of the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.blockwise_decode import ReadingSizes, read_texts
from benchmarks.quality.cache_accuracy import ComparedCache, measure
from benchmarks.quality.cache_codecs import METHODS, parse_codec
from benchmarks.quality.cache_tables import accuracy_figures, accuracy_json, accuracy_table
from benchmarks.quality.error_tables import norms_figures, norms_json, norms_table
from benchmarks.results_file import benchmark_parser
from benchmarks.results_file import save as save_results
from enginewright.runtime.errors import EnginewrightError
from enginewright.runtime.evaluation.candidates import Candidate, open_candidates
from enginewright.runtime.evaluation.documents import read_documents
from enginewright.runtime.evaluation.problems import KINDS, LEVELS, Problem, held_out_problems
from enginewright.runtime.evaluation.questions import make_questions
from enginewright.runtime.evaluation.texts import Text, document_texts, solution_texts

NAME = "benchmarks.quality.kv_caches"
BASELINES = ("kivi", "hadamard-token", "hadamard-channel", "rtn")
CACHES = (
    *("fp16", "kvarn-k8v8", "kvarn-k4v4"),
    *("kvarn-k4v2", *(f"{method}-k4v2" for method in BASELINES)),
    *("kvarn-k2v2", *(f"{method}-k2v2" for method in BASELINES)),
)


def main(arguments: Sequence[str]) -> int:
    """Measure every cache and print the table."""
    args = parse_arguments(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = args.fp16 or build(args.model, Path(folder) / "fp16", args)
        candidate = open_candidates([str(root)], None)[0]
        caches = [
            ComparedCache(
                name=name,
                engine=root,
                manifest=candidate.manifest,
                codec=None if name == "fp16" else parse_codec(name, args.exact_layers, windowed=not args.exact_windows),
            )
            for name in args.caches.split(",")
        ]
        engines = open_candidates([str(path) for path in args.engine], None) if args.engine else []
        caches += [ComparedCache(name=own.name, engine=own.root, manifest=own.manifest) for own in engines]
        if args.norms:
            texts = pick_texts(candidate, args)
            sizes = ReadingSizes(block=args.block, static=args.static, every=args.every)
            errors = read_texts(candidate.root, caches, texts, args.threads, sizes=sizes, keep=args.keep)
            save(args.json, norms_json(errors))
            save_results(args.results, NAME, arguments, norms_figures(errors))
            print(norms_table(errors))
            return 0
        questions = make_questions(candidate, pick_problems(args), candidate.manifest.limits.max_context)
        results = []
        for result in measure(caches, questions, threads=args.threads, max_batch=args.max_batch):
            share = f"{100 * result.accuracy().value:.1f} %"
            times = f"{result.answers.seconds:.0f} s, {result.codec_seconds:.0f} s of it in the codec"
            print(f"{result.cache.name}: {share}, {times}", file=sys.stderr, flush=True)
            results.append(result)
            save(args.json, accuracy_json(results))  # so that a long run that is stopped leaves its results so far
        save_results(args.results, NAME, arguments, accuracy_figures(results))
        print(accuracy_table(results))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="checkpoint from which an engine is built")
    source.add_argument("--fp16", type=Path, metavar="DIR", help="engine directory built with --kv-bits 16")
    parser.add_argument("--caches", default=",".join(CACHES), help=f"methods: {', '.join(METHODS)} (default: all)")
    parser.add_argument("--engine", action="append", type=Path, metavar="DIR", help="engine to run, too; repeatable")
    parser.add_argument(
        "--exact-layers", type=int, default=0, metavar="N", help="leave the first N layers as they are (0)"
    )
    parser.add_argument("--exact-windows", action="store_true", help="leave layers with a sliding window as they are")
    parser.add_argument("--level", default="hard", choices=LEVELS)
    parser.add_argument(
        "--kinds", default=",".join(KINDS), help=f"kinds of problems: {', '.join(KINDS)} (default: all)"
    )
    parser.add_argument("--count", type=int, default=200, help="problems of each kind, or windows of --data (200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--norms", action="store_true", help="measure errors of keys and values instead of answers")
    parser.add_argument("--data", metavar="FILE", help="with --norms: read this text instead of problems")
    parser.add_argument("--window", type=int, default=2048, help="tokens of --data at a time (2048)")
    parser.add_argument("--block", type=int, default=0, help="positions of --data that are one draw (0: a window)")
    parser.add_argument("--static", type=int, default=1 << 30, help="static errors on so many texts (all)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="with --norms: keep the errors of each text there, to go on"
    )
    parser.add_argument(
        "--every", type=int, default=1, help="static errors of attention for one in N tiles of tokens (1)"
    )
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--max-context", type=int, default=4096)
    parser.add_argument("--threads", type=int, help="default: the physical cores")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything measured, with the verdict on each problem"
    )
    return parser


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments, after the checks that need no engine."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    try:
        for name in args.caches.split(","):
            if name != "fp16":
                parse_codec(name)
    except ValueError as error:
        parser.error(str(error))
    if unknown := set(args.kinds.split(",")) - set(KINDS):
        parser.error(f"--kinds: got {', '.join(sorted(unknown))}, expected some of {', '.join(KINDS)}")
    return args


def build(model: str, output: Path, args: argparse.Namespace) -> Path:
    """Build the engine that all simulated caches share."""
    from enginewright.exporters.build import build as build_engine
    from enginewright.exporters.recipe import Recipe, parse_weights

    recipe = Recipe(
        weights=parse_weights("float32"), kv_bits=16, max_batch=args.max_batch, max_context=args.max_context
    )
    build_engine(model, output, recipe, "onnxruntime")
    return output


def save(path: Path | None, measured: object) -> None:
    """Write the measurements as JSON, unless `path` is None."""
    if path is not None:
        path.write_text(json.dumps(measured, indent=2) + "\n")


def pick_problems(args: argparse.Namespace) -> list[Problem]:
    """Return --count held-out problems of each kind."""
    return [p for kind in args.kinds.split(",") for p in held_out_problems(kind, args.level, args.count, args.seed)]


def pick_texts(candidate: Candidate, args: argparse.Namespace) -> list[Text]:
    """Return windows of --data, or problems with their solutions."""
    if args.data is None:
        return solution_texts(make_questions(candidate, pick_problems(args), candidate.manifest.limits.max_context))
    return document_texts(candidate, read_documents(Path(args.data)), args.data, args.window)[: args.count]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EnginewrightError as error:
        sys.exit(str(error))
