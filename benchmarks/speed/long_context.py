"""Time of decode steps over long contexts, with a 16-bit cache and with KVarN's in engines of the same model.

    python -m enginewright.exporters.source.synthetic --like qwen3-0.6b --output CHECKPOINT
    python build_engine.py --model CHECKPOINT --output HALF --weights int4 --max-context 17408
    python build_engine.py --model CHECKPOINT --output KVARN --weights int4 --max-context 17408 --apply kvarn
    python -m benchmarks.speed.long_context --half HALF --kvarn KVARN --context 2048,16384 --batch 8 --threads 2

Table: docs/benchmarks.md, "KVarN: speed". Limit: a step reads its whole cache, so the command prints the time of plain reads
of as many bytes, at the best rate of the same run. It also prints each side's best and median step, the ratio of the bests,
the median ratio of neighbouring turns, and the time that encoding adds to the steps of a tile.

Both engines are loaded in one process and decode in turn, a few steps each, so that drift of the machine's speed slows both.
Computing prompts of such lengths would take hours. Instead the cache's memory is filled with random elements, and the tables
record the context as held by every row. The steps are the engine's own: the whole graph, new tokens stored, and one step in
which every row's newest tile is encoded. To save memory, layers share `POOLS` pools, each far larger than any processor's
cache, so that every layer still reads its tiles from memory.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.kernels.cpu_attention import SLICE, best_times, reader
from benchmarks.kernels.cpu_kvarn import made_up_record
from benchmarks.results_file import Condition, Figure, benchmark_parser, save
from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.runtime import load
from enginewright.runtime.backends.onnxruntime.cpu_session import CpuSession
from enginewright.runtime.backends.session import PackedStep
from enginewright.runtime.llm import LLM

NAME = "benchmarks.speed.long_context"
POOLS = 4
WARM, TURN = 1, 3  # untimed and timed steps of a turn


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("--half", type=Path, required=True, help="engine with a 16-bit cache")
    parser.add_argument("--kvarn", type=Path, required=True, help="engine with a KVarN cache")
    parser.add_argument("--context", default="2048,16384", help="tokens that each row holds, whole tiles")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=8, help="turns of each side")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Measure every context."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    figures: list[Figure] = []
    for context in map(int, args.context.split(",")):
        if context % TILE_TOKENS or context < 2 * TILE_TOKENS:
            parser.error(f"--context: got {context}, expected a multiple of {TILE_TOKENS} from {2 * TILE_TOKENS} on")
        with ExitStack() as stack:
            sides = []
            for engine in (args.half, args.kvarn):
                tokens = args.batch * (context + TILE_TOKENS)
                llm = load(
                    engine, args.threads, max_batch=args.batch, cache_tokens=tokens, prefix_reuse=False, verify=False
                )
                sides.append(FilledEngine(stack.enter_context(llm), args.batch, context))
            figures += compare(sides, args.turns, args.threads)
    save(args.results, NAME, arguments, figures)
    return 0


def compare(sides: list[FilledEngine], turns: int, threads: int) -> list[Figure]:
    """Let the sides take turns; print and return their figures."""
    times: list[list[list[float]]] = [[], []]
    for _, (index, side) in itertools.product(range(turns), enumerate(sides)):
        times[index].append([side.step() for _ in range(WARM + TURN)][WARM:])
    encode = sides[1].encoding()
    batch, rate = sides[0].batch, read_rate(threads)
    print(f"{batch} x {sides[0].context} tokens, {threads} threads, {turns} turns of {TURN} steps")
    best, medians = [float(np.min(t)) for t in times], [float(np.median(t)) for t in times]
    for name, side, low, middle in zip(("half", "kvarn"), sides, best, medians, strict=True):
        read = side.cache_bytes() / rate
        print(
            f"  {name:5} best {low * 1e3:6.1f} ms a step, {batch / low:6.1f} tokens/s, median {middle * 1e3:6.1f} ms; ",
            end="",
        )
        print(f"reading its {side.cache_bytes() / 2**30:.2f} GiB of cache alone: {read * 1e3:.1f} ms")
    ratios = [np.median(half) / np.median(kvarn) for half, kvarn in zip(*times, strict=True)]
    print(f"  half / kvarn: best/best {best[0] / best[1]:.2f}, median of turns {np.median(ratios):.2f}", end="")
    print(f" ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"  encoding: {100 * encode:.2f} % of {TILE_TOKENS} steps")
    about: dict[str, Condition] = {"context": sides[0].context, "batch": batch}
    figures = [
        Figure(name="encoding, share of a tile's steps", value=100 * encode, unit="%", conditions=about),
        Figure(name="16 bits / KVarN, median of turns", value=float(np.median(ratios)), unit="times", conditions=about),
    ]
    for name, side, low in zip(("16 bits", "KVarN"), sides, best, strict=True):
        own: dict[str, Condition] = {**about, "cache": name}
        figures.append(Figure(name="decode step, best", value=low * 1e3, unit="ms", conditions=own))
        read = side.cache_bytes() / rate * 1e3
        figures.append(Figure(name="reading its cache alone", value=read, unit="ms", conditions=own))
    return figures


class FilledEngine:
    """One engine with a filled cache: every row holds `context` tokens less those that the turns will add."""

    def __init__(self, llm: LLM, batch: int, context: int) -> None:
        assert isinstance(llm.loop.session, CpuSession)
        self.llm, self.batch, self.context = llm, batch, context
        self._tables, self._session = llm.loop.scheduler.tables, llm.loop.session
        fill(llm, self._session)
        self._advance(np.full(batch, context - TILE_TOKENS))

    def step(self) -> float:
        """Decode one token in every row; return the seconds."""
        held, one = self._tables.held.copy(), np.ones(self.batch, np.int64)
        assert self._tables.grow(one), "the cache is too small"
        starts = np.arange(self.batch + 1, dtype=np.int32)
        packed = PackedStep(np.arange(self.batch) + held % 1000, held, starts, np.arange(self.batch))
        begin = time.perf_counter()
        self._session.run(packed)
        spent = time.perf_counter() - begin
        self._tables.advance(one)
        return spent

    def encoding(self) -> float:
        """The time by which the step at a tile's end is longer than the steps around it, as a share of a tile's steps."""
        self._advance(np.full(self.batch, TILE_TOKENS - 6 - int(self._tables.held[0]) % TILE_TOKENS))
        times = [self.step() for _ in range(11)]
        assert self._tables.held[0] % TILE_TOKENS == 5
        usual = float(np.median(times[:5] + times[6:]))
        return max(0.0, times[5] - usual) / (TILE_TOKENS * usual)

    def cache_bytes(self) -> float:
        """Bytes of the cache that a step reads."""
        tiles = self.context / TILE_TOKENS
        return self.batch * sum(
            layer.kv_heads * (layer.tile_bytes * (tiles - 1.5) + 1.5 * layer.exact_bytes)
            if layer.exact_bytes
            else layer.kv_heads * layer.tile_bytes * tiles
            for layer in self.llm.manifest.cache.layers
        )

    def _advance(self, share: np.ndarray) -> None:
        """Make the tables count more tokens as held, without computing them."""
        assert self._tables.grow(share), "the cache is too small"
        self._tables.advance(share)


def fill(llm: LLM, session: CpuSession) -> None:
    """Fill the cache with numbers of ordinary magnitude, so that arithmetic costs what it usually does; share the pools."""
    rng = np.random.default_rng(0)
    for index, layer in enumerate(llm.manifest.cache.layers):
        name, shared = f"kv.{index}.tiles", f"kv.{index % POOLS}.tiles"
        if layer.exact_bytes:
            session._buffers[f"kv.{index}.exact"][:] = rng.normal(0, 1, layer.exact_bytes // 2).astype(np.float16)
        if name != shared:
            session._bind_input(name, session._buffers[shared])
            session._bind_output(f"{name}.out", session._buffers[shared])
        elif layer.exact_bytes:
            bits = next((m["k_bits"], m["v_bits"]) for m in llm.manifest.applied if m["name"] == "kvarn")
            session._buffers[name][:] = made_up_record(rng, layer.key_dim, bits)
        else:
            session._buffers[name][:] = rng.normal(0, 1, layer.tile_bytes // 2).astype(np.float16).view(np.int8)


def read_rate(threads: int) -> float:
    """The best rate in bytes per second at which `threads` threads read memory."""
    buffer = np.ones(2**30 // 4, np.float32)
    with ThreadPoolExecutor(threads) as pool:
        (seconds,) = best_times(2.0, reader(buffer, threads, pool))
    return SLICE / seconds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
