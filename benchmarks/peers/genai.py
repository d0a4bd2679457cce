"""Decode and prefill speed of an engine compared with onnxruntime-genai's, in alternating processes.

    pip install onnxruntime-genai==0.18.0
    python -m enginewright.exporters.source.synthetic --like qwen2-0.5b --output CHECKPOINT
    python build_engine.py --model CHECKPOINT --output ENGINE --weights int4
    python -m onnxruntime_genai.models.builder -i CHECKPOINT -o PEER -p int4 -e cpu     # wants tokenizer files too
    python -m benchmarks.peers.genai --engine ENGINE --peer PEER

The model of a GGUF file is a checkpoint of its numbers for the builder, which rounds them to its own codes:

    python -m benchmarks.peers.write_checkpoint --gguf FILE.gguf --output CHECKPOINT
    python -m onnxruntime_genai.models.builder -i CHECKPOINT -o PEER -p int4 -e cpu --extra_options hf_token=false

Table: docs/benchmarks.md, "onnxruntime-genai". benchmarks/peers/rounds.py describes the rounds and the limit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.peers.rounds import (
    Competitor,
    Speeds,
    add_arguments,
    best_of_repeats,
    clock,
    compare,
    engine_side,
    print_speeds,
    size_arguments,
)
from benchmarks.results_file import benchmark_parser, save

NAME = "benchmarks.peers.genai"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    add_arguments(parser)
    parser.add_argument("--peer", required=True, type=Path, help="onnxruntime-genai model directory")
    parser.add_argument("--side", choices=("peer",), help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the rounds; in the peer's own process, measure its speeds."""
    args = make_parser().parse_args(arguments)
    if args.side == "peer":
        print_speeds(measure(args))
        return 0
    script = [sys.executable, "-m", NAME, "--side", "peer"]
    script += ["--engine", str(args.engine[0].resolve()), "--peer", str(args.peer.resolve())]
    weights = sum(file.stat().st_size for file in args.peer.glob("*.onnx.data"))
    peer = Competitor("onnxruntime-genai", [*script, *size_arguments(args)], weights)
    figures = compare([*(engine_side(engine, args) for engine in args.engine), peer], args)
    save(args.results, NAME, arguments, figures)
    return 0


def measure(args: argparse.Namespace) -> Speeds:
    """The best speeds of onnxruntime-genai in the repeats, on random prompts, decoded greedily to a fixed length."""
    import onnxruntime_genai as og

    config = og.Config(str(args.peer))
    threads = {"model": {"decoder": {"session_options": {"intra_op_num_threads": args.threads}}}}
    config.overlay(json.dumps(threads))
    model = og.Model(config)
    rng, now = np.random.default_rng(0), clock(args)
    length = args.prompt_tokens + args.new_tokens + 1

    def generate() -> tuple[float, float, float]:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=length, min_length=length, do_sample=False, batch_size=args.batch)
        generator = og.Generator(model, params)
        ids = rng.integers(3, 500, (args.batch, args.prompt_tokens)).astype(np.int32)
        begin = now()
        generator.append_tokens(ids if args.batch > 1 else ids[0])
        generator.generate_next_token()
        middle = now()
        for _ in range(args.new_tokens):
            generator.generate_next_token()
        return begin, middle, now()

    return best_of_repeats(generate, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
