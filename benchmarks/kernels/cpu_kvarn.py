"""Speed of decoding over a KVarN cache on a CPU, next to a 16-bit cache of the same tokens, and the cost of encoding a tile.

    python -m benchmarks.kernels.cpu_kvarn [--threads 1,2] [--seconds 3] [--k-bits 4] [--v-bits 2]

Table: docs/benchmarks.md, "KVarN: attention alone". Needs numpy, onnx and onnxruntime, and 4 GiB of memory.

Limit: at equal memory speed the ratio is at most that of the caches' bytes; both rates are printed. Both caches are read in
turn within one process, and several sets in rotation, so that they come from memory. Every figure is the best of many short
runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kernels.cpu_attention import GIB, SLICE, Line, Shape, attention, best_times, bound_op
from benchmarks.results_file import Condition, Figure, benchmark_parser, print_lines, save
from enginewright.plugins.libraries.cpu import cpu_isa
from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION
from enginewright.plugins.ops.tiles import TILE_TOKENS, kvarn_tile_bytes

NAME = "benchmarks.kernels.cpu_kvarn"
MAX_LAYERS = 64
HEADS = ((32, 8, 128), (14, 2, 64))
"""Query heads, KV heads and head size of each model that is measured."""


def kvarn_inputs(shape: Shape, layers: int, bits: tuple[int, int], encoded: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """Inputs by name, with one layer's pools; `encoded` tokens before and after the call, in every row and head."""
    rng = np.random.default_rng(0)
    heads, count = (shape.batch, shape.kv_heads), max(encoded) // TILE_TOKENS
    ids = rng.permutation(shape.batch * shape.kv_heads * count).reshape(*heads, count).astype(np.int32)
    record = made_up_record(rng, shape.dim, bits)
    exact = rng.standard_normal((*heads, 2, 2 * TILE_TOKENS * shape.dim), np.float32).astype(np.float16)
    tokens = shape.batch * shape.new
    lens = np.array(encoded, np.int32).reshape(2, 1, 1, 1)
    return {
        "query": rng.standard_normal((tokens, shape.query_heads, shape.dim), np.float32),
        "key": rng.standard_normal((tokens, shape.kv_heads, shape.dim), np.float32),
        "value": rng.standard_normal((tokens, shape.kv_heads, shape.dim), np.float32),
        "tiles": np.broadcast_to(record, (ids.size, record.size)).copy(),
        "exact": exact,
        "query_starts": np.arange(shape.batch + 1, dtype=np.int32) * shape.new,
        "kv_lens": np.full((layers, *heads), shape.held, np.int32),
        "tile_table": np.broadcast_to(ids, (layers, *ids.shape)).copy(),
        "slots": np.arange(shape.batch, dtype=np.int32),
        "encoded_lens": np.broadcast_to(lens, (2, layers, *heads)).copy(),
    }


def made_up_record(rng: np.random.Generator, dim: int, bits: tuple[int, int]) -> NDArray[np.int8]:
    """A record with random codes and scales of 0.25."""
    record = rng.integers(-128, 128, kvarn_tile_bytes(dim, *bits), np.int8)
    for start, halves in scales(dim, bits):
        record[start : start + 2 * halves] = np.full(halves, 0.25, np.float16).view(np.int8)
    return record


def scales(dim: int, bits: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Offset and number of the halves in a record, where random bytes could be infinities."""
    keys = TILE_TOKENS * dim * bits[0] // 8
    values = TILE_TOKENS * dim * bits[1] // 8
    yield keys, 2 * dim + TILE_TOKENS
    yield keys + 2 * (2 * dim + TILE_TOKENS) + values, dim + 2 * TILE_TOKENS


def cache_bytes(shape: Shape, bits: tuple[int, int], encoded: int) -> int:
    """Bytes of cache that one layer reads: the records, and the exact tokens with the new ones."""
    records = (encoded // TILE_TOKENS - 1) * kvarn_tile_bytes(shape.dim, *bits)
    exact = (shape.held + shape.new - encoded + TILE_TOKENS) * 2 * shape.dim * 2
    return shape.batch * shape.kv_heads * (records + exact)


def decode_line(shape: Shape, bits: tuple[int, int], threads: int, seconds: float) -> tuple[str, float, float]:
    """The printed line, the seconds of one layer, and the seconds of one layer over a 16-bit cache."""
    encoded = shape.held // TILE_TOKENS * TILE_TOKENS
    mine = cache_bytes(shape, bits, encoded)
    layers = min(MAX_LAYERS, max(1, SLICE // mine))
    sets = max(2, min(4, GIB // (layers * shape.cache_bytes)))
    arrays = kvarn_inputs(shape, layers, bits, (encoded, encoded))
    body = bound_op(KVARN_ATTENTION, arrays, layers, sets, threads, attributes(shape, bits))
    taken, half = best_times(seconds, body, attention(shape, layers, sets, threads))
    rates = layers * mine / taken / 1e9, layers * shape.cache_bytes / half / 1e9
    micros = f"{taken / layers * 1e6:.0f} us a layer, half cache {half / layers * 1e6:.0f} us"
    line = f"{shape}: {micros}, ratio {half / taken:.2f} ({rates[0]:.1f} and {rates[1]:.1f} GB/s)"
    return line, taken / layers, half / layers


def encode_seconds(shape: Shape, bits: tuple[int, int], threads: int, seconds: float) -> float:
    """Seconds by which a call that completes and encodes tiles takes longer than one that does not."""
    layers = 8
    bodies = [
        bound_op(KVARN_ATTENTION, kvarn_inputs(shape, layers, bits, lens), layers, 1, threads, attributes(shape, bits))
        for lens in ((TILE_TOKENS, 2 * TILE_TOKENS), (TILE_TOKENS, TILE_TOKENS))
    ]
    encoding, plain = best_times(seconds, *bodies)
    return (encoding - plain) / layers


def attributes(shape: Shape, bits: tuple[int, int]) -> dict[str, Any]:
    """The nodes' attributes."""
    return {"scale": shape.dim**-0.5, "k_bits": bits[0], "v_bits": bits[1]}


def lines(threads: int, seconds: float, bits: tuple[int, int], contexts: list[int]) -> Iterator[Line]:
    """Decoding at each context, and the cost of encoding as a share of the 128 steps that fill a tile."""
    for query_heads, kv_heads, dim in HEADS:
        for batch in (1, 8):
            model = {"query_heads": query_heads, "kv_heads": kv_heads, "dim": dim, "batch": batch, "new": 1}
            flush = encode_seconds(Shape(**model, held=2 * TILE_TOKENS - 1), bits, threads, seconds)
            tile = flush / (batch * kv_heads)
            for context in contexts:
                shape = Shape(**model, held=context - 1)
                line, step, half = decode_line(shape, bits, threads, seconds)
                share = flush / (TILE_TOKENS * step)
                conditions: dict[str, Condition] = {**shape.conditions, "threads": threads}
                found = [
                    Figure(name="attention of a layer", value=step * 1e6, unit="us", conditions=conditions),
                    Figure(name="the same over 16 bits", value=half * 1e6, unit="us", conditions=conditions),
                    Figure(name="16 bits / KVarN, time", value=half / step, unit="times", conditions=conditions),
                    Figure(
                        name="encoding, share of a tile's steps", value=100 * share, unit="%", conditions=conditions
                    ),
                ]
                yield f"{line}; encoding {tile * 1e6:.1f} us a tile, {share:.2%} of its steps", found


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("--threads", default="1,2", help="thread counts, comma-separated")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each line; the best run counts")
    parser.add_argument("--contexts", default="2048,4096,16384", help="tokens in the cache, comma-separated")
    parser.add_argument("--k-bits", type=int, default=4)
    parser.add_argument("--v-bits", type=int, default=2)
    return parser


def main(arguments: Sequence[str]) -> None:
    """Print one line per measurement."""
    options = make_parser().parse_args(arguments)
    print(f"kernels: {cpu_isa()}")
    figures: list[Figure] = []
    for threads in map(int, options.threads.split(",")):
        print(f"{threads} thread(s)")
        contexts = [int(context) for context in options.contexts.split(",")]
        figures += print_lines(lines(threads, options.seconds, (options.k_bits, options.v_bits), contexts))
    save(options.results, NAME, arguments, figures, notes=f"kernels: {cpu_isa()}")


if __name__ == "__main__":
    main(sys.argv[1:])
