"""Decode and prefill speed of an engine compared with llama.cpp's, in alternating processes.

    python -m venv LLAMA && LLAMA/bin/pip install gguf safetensors
    CMAKE_ARGS="-DGGML_NATIVE=ON" LLAMA/bin/pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36
    python -m enginewright.exporters.source.synthetic --like qwen2-0.5b --output CHECKPOINT
    python build_engine.py --model CHECKPOINT --output ENGINE --weights int4
    LLAMA/bin/python -m benchmarks.peers.write_gguf --checkpoint CHECKPOINT --output PURE.gguf --type q4_0 --pure
    LLAMA/bin/python -m benchmarks.peers.write_gguf --checkpoint CHECKPOINT --output MIXED.gguf --type q4_0
    python -m benchmarks.peers.llama_cpp --engine ENGINE --gguf PURE.gguf MIXED.gguf --peer-python LLAMA/bin/python

A GGUF file that is there needs no other: the engine is built from it (`build_engine.py --model FILE.gguf`), and `--gguf FILE.gguf`
is the peer's.

Table: docs/benchmarks.md, "llama.cpp". benchmarks/peers/rounds.py describes the rounds and the limit. A second command shows
that a file contains the checkpoint's model:

    LLAMA/bin/python -m benchmarks.peers.write_gguf --checkpoint CHECKPOINT --output EXACT.gguf --type f32
    python -m benchmarks.peers.llama_cpp --check CHECKPOINT --gguf EXACT.gguf --peer-python LLAMA/bin/python

It prints the largest difference between the logits of llama.cpp and of transformers over 24 tokens, both in float32, with
llama.cpp's cache in float32, too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.rounds import CHECKOUT, Competitor, add_arguments, compare, engine_side, size_arguments
from benchmarks.results_file import Condition, Figure, benchmark_parser, save

NAME = "benchmarks.peers.llama_cpp"
CHECKED = 24


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    add_arguments(parser, needs_engine=False)
    parser.add_argument(
        "--gguf", required=True, type=Path, nargs="+", help="files of the same model; see write_gguf.py"
    )
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with llama-cpp-python")
    parser.add_argument("--check", type=Path, metavar="CHECKPOINT", help="compare logits instead of speeds")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the rounds, or compare logits."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.check is not None:
        save(args.results, NAME, arguments, [check(file, args.check, args.peer_python) for file in args.gguf])
        return 0
    if args.engine is None:
        parser.error("--engine: got none, expected one at least; only --check needs none")
    peers = [
        Competitor(file.stem, [*peer_command(file, args.peer_python), *size_arguments(args)], file.stat().st_size)
        for file in args.gguf
    ]
    figures = compare([*(engine_side(engine, args) for engine in args.engine), *peers], args)
    save(args.results, NAME, arguments, figures)
    return 0


def peer_command(file: Path, python: str) -> list[str]:
    """The command that measures llama.cpp, without the arguments for sizes."""
    return [python, "-m", "benchmarks.peers.llama_cpp_process", "--model", str(file.resolve())]


def check(file: Path, checkpoint: Path, python: str) -> Figure:
    """Print and return the largest difference between the logits of llama.cpp and of transformers."""
    tokens = np.random.default_rng(0).integers(3, 500, CHECKED).astype(np.int32)
    with tempfile.TemporaryDirectory() as work:
        exchange = Path(work) / "logits.npz"
        np.savez(exchange, tokens=tokens)
        command = [*peer_command(file, python), "--logits", str(exchange)]
        subprocess.run(command, check=True, capture_output=True, cwd=CHECKOUT)
        logits = np.load(exchange)["logits"]
    expected = reference_logits(checkpoint, tokens)
    same = np.mean(logits.argmax(-1) == expected.argmax(-1))
    difference, largest = float(np.abs(logits - expected).max()), float(np.abs(expected).max())
    print(f"{file.name} largest difference {difference:.1e} of {largest:.1f}, same token {same:.0%}", flush=True)
    conditions: dict[str, Condition] = {"file": file.name, "tokens": CHECKED, "largest logit": largest}
    return Figure(name="largest difference of logits", value=difference, unit="logits", conditions=conditions)


def reference_logits(checkpoint: Path, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Logits float32 [tokens, V] of transformers' eager model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.from_numpy(tokens[None].astype(np.int64))).logits[0].numpy()
    return logits


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
