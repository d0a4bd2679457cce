"""Measures llama.cpp's speeds, or writes its logits, as one side of `benchmarks.peers.llama_cpp`.

    LLAMA/bin/python -m benchmarks.peers.llama_cpp_process --model FILE.gguf --threads 2

Runs under the interpreter that has llama-cpp-python, and prints in the form of `enginewright bench --json`. It uses the
low-level interface, with token ids. The greedy token is numpy's argmax over the logits, which costs a tenth of llama.cpp's
own sampler. Everything except the threads is llama.cpp's default: flash attention where llama.cpp chooses it, keys and values
as halves, weights repacked for the machine where it has such kernels.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.rounds import Speeds, best_of_repeats, clock, print_speeds


class LlamaCppSession:
    """A model and a context of llama.cpp that reads the tokens of one sequence; created by `open_model`."""

    def __init__(self, model: Any, context: Any) -> None:
        self._context = context
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def feed(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Read more tokens; return the logits after the last one, float32 [V], valid until the next call."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens.tolist())
        if failed := llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(ids, len(tokens))):
            raise SystemExit(f"llama_decode: got {failed}, expected 0")
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self._vocabulary,))

    def forget(self) -> None:
        """Empty the cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)


@contextmanager
def open_model(path: Path, *, threads: int, context_tokens: int, exact: bool = False) -> Iterator[LlamaCppSession]:
    """Load a GGUF file.

    exact: keep keys and values in float32, and leave out the fused attention kernel, which computes in halves.
    """
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if model is None:
        raise SystemExit(f"{path}: llama.cpp cannot load it; its log says why")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = context_tokens, threads, threads
    if exact:
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, params)
    try:
        yield LlamaCppSession(model, context)
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def measure(args: argparse.Namespace) -> Speeds:
    """The best speeds of the repeats on one sequence with random prompts, decoded greedily."""
    rng, now = np.random.default_rng(0), clock(args)

    def generate() -> tuple[float, float, float]:
        decoder.forget()
        prompt = rng.integers(3, 500, args.prompt_tokens).astype(np.int32)
        begin = now()
        token = decoder.feed(prompt).argmax()
        middle = now()
        for _ in range(args.new_tokens):
            token = decoder.feed(np.array([token], np.int32)).argmax()
        return begin, middle, now()

    with open_model(
        args.model, threads=args.threads, context_tokens=args.prompt_tokens + args.new_tokens + 1
    ) as decoder:
        decoder.feed(np.zeros(args.prompt_tokens, np.int32))  # first runs allocate
        return best_of_repeats(generate, args)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1, choices=(1,))
    parser.add_argument("--cpu-time", action="store_true", help="measure processor time instead of wall time")
    parser.add_argument("--logits", type=Path, metavar="FILE.npz", help="read its `tokens` one by one, add `logits`")
    args = parser.parse_args()
    if args.logits is None:
        print_speeds(measure(args))
        return 0
    tokens = np.load(args.logits)["tokens"]
    with open_model(args.model, threads=args.threads, context_tokens=len(tokens), exact=True) as decoder:
        logits = np.stack([decoder.feed(tokens[i : i + 1]).copy() for i in range(len(tokens))])
    np.savez(args.logits, tokens=tokens, logits=logits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
