"""Compares decoding over long contexts: an engine with a 16-bit cache against one of the same model with KVarN's.

    python -m enginewright.exporters.synthetic --like qwen3-0.6b --output CHECKPOINT
    python build_engine.py --model CHECKPOINT --output HALF --weights int4 --max-context 17408
    python build_engine.py --model CHECKPOINT --output KVARN --weights int4 --max-context 17408 --apply kvarn
    python tests/benchmarks/long_context.py --half HALF --kvarn KVARN --context 2048,16384 --batch 8 --threads 2

Each round runs both sides once, each in a process of its own. Reading prompts of such lengths would take hours, so a
process fills the cache's memory with made-up elements and tells the tables that every row holds the context; the steps
are then the engine's own: the whole graph, new tokens held, one step in which every row's newest tile is encoded.
Printed: the median step of each side, its best over the rounds with the ratio, the median of the rounds' ratios, what
encoding adds to 128 steps, and the bytes that a step reads of the cache over what this machine reads in the same run.
Needs memory for the cache: 15 GiB at 16 bits for the shape above, 8 requests and 16384 tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from enginewright.plugins.ops import TILE_TOKENS
from enginewright.runtime import load
from enginewright.runtime.llm import LLM
from enginewright.runtime.ort_session import OrtSession
from enginewright.runtime.session import PackedStep

BEFORE, AFTER = 10, 6  # steps timed before and after the one that encodes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", type=Path, help="engine with a 16-bit cache")
    parser.add_argument("--kvarn", type=Path, help="engine with a KVarN cache")
    parser.add_argument("--context", default="2048,16384", help="tokens that each row holds, whole tiles")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, int(args.context), args.batch, args.threads)))
        return 0
    for context in map(int, args.context.split(",")):
        if context % TILE_TOKENS or context < 2 * TILE_TOKENS:
            parser.error(f"--context: got {context}, expected a multiple of {TILE_TOKENS} from {2 * TILE_TOKENS} on")
        compare(args, context)
    return 0


def compare(args: argparse.Namespace, context: int) -> None:
    """Alternate between the sides and print what came of it."""
    runs: dict[str, list[dict[str, float]]] = {"half": [], "kvarn": []}
    for round_ in range(args.rounds):
        for side in runs:
            command = [sys.executable, __file__, "--side", str(getattr(args, side)), "--context", str(context)]
            command += ["--batch", str(args.batch), "--threads", str(args.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{side}: {done.stderr.strip().splitlines()[-1]}")
            runs[side].append(json.loads(done.stdout))
            print(f"round {round_ + 1} {side:5} {runs[side][-1]['step_ms']:7.1f} ms a step", file=sys.stderr)
    best = {side: min(r["step_ms"] for r in found) for side, found in runs.items()}
    ratios = [h["step_ms"] / k["step_ms"] for h, k in zip(runs["half"], runs["kvarn"], strict=True)]
    encode = float(np.median([r["encode_share"] for r in runs["kvarn"]]))
    print(f"{args.batch} x {context} tokens, {args.threads} threads, {args.rounds} rounds")
    for side, found in runs.items():
        limit = min(r["read_ms"] for r in found)
        speed = args.batch / best[side] * 1e3
        print(f"  {side:5} {best[side]:7.1f} ms a step, {speed:6.1f} tokens/s; reading its cache alone: {limit:.1f} ms")
    print(f"  half / kvarn: best/best {best['half'] / best['kvarn']:.2f}, median of rounds {np.median(ratios):.2f}")
    print(f"  encoding: {100 * encode:.2f} % of 128 steps")


def measure(engine: Path, context: int, batch: int, threads: int) -> dict[str, float]:
    """One process: fill the cache, decode around a tile's end, and time each step."""
    held = context - BEFORE - 1
    tokens = batch * (context + TILE_TOKENS)
    with load(engine, threads, max_batch=batch, cache_tokens=tokens, prefix_reuse=False, verify=False) as llm:
        fill(llm)
        tables, session = llm.engine.scheduler._tables, llm.engine.session
        share = np.full(batch, held)
        assert tables.grow(share), "the cache is too small"
        tables.advance(share)
        tables.encoded_lens[0] = tables.encoded_lens[1]
        one, starts = np.ones(batch, np.int64), np.arange(batch + 1, dtype=np.int32)
        times = []
        for step in range(1 + BEFORE + AFTER):
            assert tables.grow(one)
            ids = np.arange(batch, dtype=np.int64) + 1000 + step
            packed = PackedStep(ids, np.full(batch, held + step), starts, np.arange(batch))
            begin = time.perf_counter()
            session.run(packed)
            times.append((time.perf_counter() - begin) * 1e3)
            tables.advance(one)
        read = read_ms(llm, batch, context, threads)
    encode = times.pop(BEFORE)
    step_ms = float(np.median(times[2:]))
    return {"step_ms": step_ms, "encode_share": max(0.0, encode - step_ms) / (128 * step_ms), "read_ms": read}


def fill(llm: LLM) -> None:
    """Put ordinary numbers everywhere, so that no arithmetic is easier or harder than it would be."""
    rng = np.random.default_rng(0)
    session = llm.engine.session
    assert isinstance(session, OrtSession)
    for index, layer in enumerate(llm.manifest.cache.layers):
        pool = session._buffers[f"kv.{index}.tiles"]
        exact = rng.normal(0, 1, layer.exact_bytes // 2).astype(np.float16)
        if layer.exact_bytes:
            session._buffers[f"kv.{index}.exact"][:] = exact
            pool[:] = record(rng, layer.key_dim, layer.tile_bytes)
        else:
            pool[:] = rng.normal(0, 1, layer.tile_bytes // 2).astype(np.float16).view(np.int8)


def record(rng: np.random.Generator, dim: int, size: int) -> np.ndarray:
    """A KVarN record whose codes are random and whose scales are a quarter; see oracles/kvarn.py for its layout."""
    halves = 3 * dim + 3 * TILE_TOKENS
    bits = (size - 2 * halves) * 8 // (TILE_TOKENS * dim)  # of a key's and a value's code together
    found = next((k, bits - k) for k in (4, 2, 8) if bits - k in (2, 4, 8))
    codes = [rng.integers(-128, 128, TILE_TOKENS * dim * width // 8, np.int8) for width in found]
    key = np.full(2 * dim + TILE_TOKENS, 0.25, np.float16).view(np.int8)
    value = np.full(dim + 2 * TILE_TOKENS, 0.25, np.float16).view(np.int8)
    return np.concatenate([codes[0], key, codes[1], value])


def read_ms(llm: LLM, batch: int, context: int, threads: int) -> float:
    """How long plain reading of one step's cache takes at the rate at which `threads` threads sum an array, best of 5."""
    from concurrent.futures import ThreadPoolExecutor

    array = np.ones(threads * 2**26 // 8, np.int64)
    parts = np.array_split(array, threads)
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            begin = time.perf_counter()
            list(pool.map(np.sum, parts))
            rates.append(array.nbytes / (time.perf_counter() - begin))
    per_row = sum(
        layer.kv_heads
        * (layer.tile_bytes * (context / TILE_TOKENS - 1 * bool(layer.exact_bytes)) + 2 * layer.exact_bytes)
        for layer in llm.manifest.cache.layers
    )
    return batch * per_row / max(rates) * 1e3


if __name__ == "__main__":
    sys.exit(main())
