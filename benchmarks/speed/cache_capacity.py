"""Number of requests of equal length that run at once in the same cache memory, in a 16-bit cache and in KVarN's.

    python build_engine.py --model examples/tiny-reasoner --output HALF --max-batch 256
    python build_engine.py --model examples/tiny-reasoner --output KVARN --max-batch 256 --apply kvarn
    python -m benchmarks.speed.cache_capacity HALF KVARN --memory 0.25 --tokens 4096

Table: docs/benchmarks.md, "KVarN: capacity". Limit: the memory divided by the bytes of a request's tiles.

Each engine is loaded with rows and cache for as many requests as the memory holds according to `enginewright inspect`, and
serves that many requests with random prompts. All of them must run together to their ends, or the benchmark fails: a request
that waits for another would show in the number that run at once, a preempted one in the number of tokens computed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.results_file import Figure, benchmark_parser, save
from enginewright.runtime import Sampling, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.cache.capacity import cache_bytes, copies_bytes, request_bytes
from enginewright.runtime.scheduling.step_loop import StepTiming

NAME = "benchmarks.speed.cache_capacity"
PROMPT_TOKENS = 512


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("engines", nargs="+", type=Path, help="the others are compared with the first")
    parser.add_argument("--memory", type=float, default=0.25, help="memory of the cache in GiB")
    parser.add_argument("--tokens", type=int, default=4096, help="length of a request, prompt and completion")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run every engine and compare each with the first."""
    args = make_parser().parse_args(arguments)
    counts = [run(engine, int(args.memory * 2**30), args.tokens, args.threads) for engine in args.engines]
    for engine, count in zip(args.engines[1:], counts[1:], strict=True):
        print(f"{engine} / {args.engines[0]}: {count / counts[0]:.2f}")
    about = [{"engine": engine.name} for engine in args.engines]
    figures = [
        Figure(name="requests at once", value=count, unit="requests", conditions=engine)
        for count, engine in zip(counts, about, strict=True)
    ]
    figures += [
        Figure(name=f"requests, it / {args.engines[0].name}", value=count / counts[0], unit="times", conditions=engine)
        for count, engine in zip(counts[1:], about[1:], strict=True)
    ]
    save(args.results, NAME, arguments, figures)
    return 0


def run(engine: Path, memory: int, tokens: int, threads: int) -> int:
    """Serve as many requests as `memory` holds, all at once, and return their number."""
    manifest = directory.load(engine, verify=False)
    cache = manifest.cache
    count = max(memory - copies_bytes(cache, manifest.limits.max_context), 0) // request_bytes(cache, tokens)
    together = computed = 0

    with load(engine, threads, max_batch=count, cache_tokens=count * tokens, prefix_reuse=False) as llm:
        used = cache_bytes(cache, llm.capacity.tiles, count)
        if used > memory:
            raise SystemExit(f"{engine}: got a cache of {used} bytes for {count} requests, expected at most {memory}")

        def watch(step: StepTiming) -> None:
            nonlocal together, computed
            together, computed = max(together, step.sampled), computed + step.tokens

        llm.loop.observer = watch
        prompts = np.random.default_rng(0).integers(3, llm.manifest.model.vocab_size, (count, PROMPT_TOKENS))
        llm.generate(
            prompts.tolist(), Sampling(max_tokens=tokens - PROMPT_TOKENS, ignore_eos=True, model_defaults=False)
        )
    print(f"{engine}: {together} requests of {tokens} tokens at once, in {used / 2**20:.1f} MiB of cache")
    if together != count or computed != count * (tokens - 1):
        raise SystemExit(
            f"{engine}: got {together} requests at once and {computed} tokens computed, expected {count} and "
            f"{count * (tokens - 1)}"
        )
    return count


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
