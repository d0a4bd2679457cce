"""Writes llama.cpp's greedy answers, as one side of `benchmarks.peers.llama_cpp_answers`.

    LLAMA/bin/python -m benchmarks.peers.llama_cpp_answers_process --model FILE.gguf --prompts P.npz --answers A.npz

Runs under the interpreter that has llama-cpp-python, with llama.cpp's defaults but for the threads.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.peers.greedy_answers import answer_greedily, read_prompts
from benchmarks.peers.llama_cpp_process import open_model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--prompts", required=True, type=Path, metavar="FILE.npz", help="token ids to read")
    parser.add_argument("--answers", required=True, type=Path, metavar="FILE.npz", help="file to write")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    prompts = read_prompts(args.prompts)
    context = max(map(len, prompts)) + args.new_tokens
    with open_model(args.model, threads=args.threads, context_tokens=context) as session:
        answer_greedily(prompts, args.new_tokens, session.feed, session.forget).write(args.answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
