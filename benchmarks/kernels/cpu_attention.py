"""Speed of PagedAttention on a CPU, next to plain memory reads (decoding) and a matrix product (prefill).

    python -m benchmarks.kernels.cpu_attention --only decode --threads 2 --seconds 6

Table: docs/benchmarks.md, "Attention on a CPU". Run time: 8 lines for each number of threads; a line takes `--seconds` and a
moment to prepare. Needs numpy, onnx and onnxruntime, and 3 GiB of memory.

Limits: a decode step reads the whole cache once, so it cannot be faster than plain reads of as many bytes. Prefill cannot
exceed the processor's arithmetic, which numpy's matrix product measures. Every figure is the best of many short runs.
Reference and kernel alternate, so that a slow moment of the machine affects both. Runs read different memory in rotation, so
that none finds its data in a cache.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchmarks.results_file import Condition, Figure, benchmark_parser, print_lines, save
from enginewright.plugins.libraries.cpu import cpu_isa, load_ort_library
from enginewright.plugins.libraries.locate import ort_library
from enginewright.plugins.ops.op import DOMAIN, Op
from enginewright.plugins.ops.paged_attention import PAGED_ATTENTION
from enginewright.plugins.ops.tiles import TILE_TOKENS, tile_bytes

NAME = "benchmarks.kernels.cpu_attention"
GIB = 1 << 30
SLICE = 1 << 26
"""Bytes that one run reads: twice a 32 MiB last-level cache, and only a few milliseconds."""
Line: TypeAlias = tuple[str, list[Figure]]
"""A printed line, and the figures in it."""
SETS = 4
"""Number of sets of caches, which the runs use in turn."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of an attention call: heads, head size, and `batch` rows that hold `held` tokens and get `new` ones."""

    query_heads: int
    kv_heads: int
    dim: int
    batch: int
    held: int
    new: int

    @property
    def cache_bytes(self) -> int:
        """Bytes of cache that one layer reads, the new tokens included."""
        return self.batch * self.kv_heads * (self.held + self.new) * self.dim * 2 * 2

    @property
    def operations(self) -> int:
        """Floating-point operations of one layer: two per multiply-add, visible pairs only."""
        pairs = self.new * self.held + self.new * (self.new + 1) // 2
        return 4 * self.batch * self.query_heads * self.dim * pairs

    @property
    def conditions(self) -> dict[str, Condition]:
        """The shape in a results file."""
        return vars(self)

    def __str__(self) -> str:
        heads = f"{self.query_heads}/{self.kv_heads} heads x {self.dim}"
        return f"{heads}, batch {self.batch}, {self.held} held + {self.new} new"


def best_times(seconds: float, *bodies: Callable[[], object]) -> list[float]:
    """The shortest time of each body, in seconds; the bodies alternate for about `seconds`, twice each at least."""
    times: list[list[float]] = [[] for _ in bodies]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 2:
        for body, taken in zip(bodies, times, strict=True):
            start = time.perf_counter()
            body()
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


def reader(buffer: NDArray[np.float32], threads: int, pool: ThreadPoolExecutor) -> Callable[[], object]:
    """A function that reads the next SLICE bytes of the buffer, an equal part on each thread."""
    library, share = load_ort_library(), SLICE // 4 // threads
    slices = cycle(range(buffer.ctypes.data, buffer.ctypes.data + buffer.nbytes, SLICE))

    def read() -> None:
        first = next(slices)
        list(pool.map(lambda i: library.ew_read_sum(first + i * share * 4, share), range(threads)))

    return read


def pool_outputs(op: Op) -> dict[str, str]:
    """Input -> output of each pool that the op updates; every layer has its own pools."""
    return {t.alias: t.name for t in op.outputs if t.alias is not None}


def op_model(op: Op, layers: int, attributes: dict[str, Any]) -> bytes:
    """An ONNX model of `layers` nodes of an attention op, each with its own pools.

    The model's output is the sum of their outputs, so that no node is optimised away.
    """
    value, pools = helper.make_tensor_value_info, pool_outputs(op)
    types = {
        "float32": TensorProto.FLOAT,
        "float16": TensorProto.FLOAT16,
        "int32": TensorProto.INT32,
        "int8": TensorProto.INT8,
    }
    given = [t for t in op.inputs if not t.optional]
    inputs = [value(t.name, types[t.types[0]], [None] * len(t.shape)) for t in given if t.name not in pools]
    outputs, nodes = [value("sum", TensorProto.FLOAT, None)], []
    for layer in range(layers):
        for t in given:
            if t.name in pools:
                inputs.append(value(f"{t.name}.{layer}", types[t.types[0]], [None] * len(t.shape)))
                outputs.append(value(f"{pools[t.name]}.{layer}", types[t.types[0]], [None] * len(t.shape)))
        names = [f"{t.name}.{layer}" if t.name in pools else t.name for t in given]
        results = [f"{t.name}.{layer}" for t in op.outputs]
        nodes.append(helper.make_node(op.name, names, results, domain=DOMAIN, layer=layer, **attributes))
    nodes.append(helper.make_node("Sum", [f"output.{layer}" for layer in range(layers)], ["sum"]))
    graph = helper.make_graph(nodes, "bench", inputs, outputs)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, op.version)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return model


def bound_op(
    op: Op, arrays: dict[str, NDArray[Any]], layers: int, sets: int, threads: int, attributes: dict[str, Any]
) -> Callable[[], object]:
    """A function that runs `layers` nodes on the next of `sets` sets of bound pools, copies of the arrays with that name."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(ort_library()))
    session = ort.InferenceSession(op_model(op, layers, attributes), options, ["CPUExecutionProvider"])
    pools = pool_outputs(op)
    shared = {name: ort.OrtValue.ortvalue_from_numpy(x) for name, x in arrays.items() if name not in pools}
    bindings: list[Any] = []
    for _ in range(sets):
        binding = session.io_binding()
        for name, value in [*shared.items()]:
            if name in arrays:
                binding.bind_ortvalue_input(name, value)
        for layer in range(layers):
            for name, output in pools.items():
                pool = ort.OrtValue.ortvalue_from_numpy(arrays[name].copy())
                binding.bind_ortvalue_input(f"{name}.{layer}", pool)
                binding.bind_ortvalue_output(f"{output}.{layer}", pool)
                shared[f"{len(bindings)}.{name}.{layer}"] = pool  # kept alive by the closure below
        binding.bind_output("sum")
        bindings.append(binding)
    turns = cycle(bindings)
    return lambda: shared and session.run_with_iobinding(next(turns))


def attention(shape: Shape, layers: int, sets: int, threads: int) -> Callable[[], object]:
    """A function that runs PagedAttention at a shape, on the next of `sets` sets of pools."""
    arrays = attention_inputs(shape, layers, np.random.default_rng(0))
    return bound_op(PAGED_ATTENTION, arrays, layers, sets, threads, {"scale": shape.dim**-0.5})


def attention_inputs(shape: Shape, layers: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Inputs by name, with one layer's pool; tile ids are in random order, as after a while of serving."""
    tokens, width = shape.batch * shape.new, -(-(shape.held + shape.new) // TILE_TOKENS)
    ids = rng.permutation(shape.batch * shape.kv_heads * width).reshape(shape.batch, shape.kv_heads, width)
    arrays: dict[str, NDArray[Any]] = {
        "query": rng.standard_normal((tokens, shape.query_heads, shape.dim), np.float32),
        "key": rng.standard_normal((tokens, shape.kv_heads, shape.dim), np.float32),
        "value": rng.standard_normal((tokens, shape.kv_heads, shape.dim), np.float32),
        "query_starts": np.arange(shape.batch + 1, dtype=np.int32) * shape.new,
        "kv_lens": np.full((layers, shape.batch, shape.kv_heads), shape.held, np.int32),
        "tile_table": np.broadcast_to(ids.astype(np.int32), (layers, *ids.shape)).copy(),
    }
    halves = ids.size * tile_bytes(shape.dim, shape.dim, 16) // 2
    pool = np.resize(rng.standard_normal(1 << 20, np.float32).astype(np.float16), halves)
    return {**arrays, "tiles": pool.view(np.int8).reshape(ids.size, -1)}


def decode_lines(threads: int, seconds: float, buffer: NDArray[np.float32], pool: ThreadPoolExecutor) -> Iterator[Line]:
    """Decoding at 8192 tokens: bytes of cache read per second, compared with reading a plain buffer."""
    for query_heads, kv_heads, dim in ((14, 2, 64), (32, 8, 128)):
        for batch in (1, 8):
            shape = Shape(query_heads=query_heads, kv_heads=kv_heads, dim=dim, batch=batch, held=8191, new=1)
            layers = max(1, SLICE // shape.cache_bytes)
            body = attention(shape, layers, SETS, threads)
            taken, reference = best_times(seconds, body, reader(buffer, threads, pool))
            rate, stream = layers * shape.cache_bytes / taken / 1e9, SLICE / reference / 1e9
            line = f"decode  {shape}: {rate:.1f} GB/s, stream {stream:.1f} GB/s, {rate / stream:.0%}"
            yield (
                line,
                figures_of("decode", "GB/s", rate, "plain read", stream, {**shape.conditions, "threads": threads}),
            )


def prefill_lines(threads: int, seconds: float) -> Iterator[Line]:
    """Prefill: operations per second over visible pairs, compared with numpy's matrix product on its own threads."""
    a = np.random.default_rng(1).standard_normal((2048, 2048), np.float32)
    for query_heads, kv_heads, dim in ((14, 2, 64), (32, 8, 128)):
        for new in (1024, 4096):
            shape = Shape(query_heads=query_heads, kv_heads=kv_heads, dim=dim, batch=1, held=0, new=new)
            taken, product = best_times(seconds, attention(shape, 1, 1, threads), lambda: a @ a)
            rate, peak = shape.operations / taken / 1e9, 2 * 2048**3 / product / 1e9
            line = f"prefill {shape}: {rate:.0f} GFLOP/s, numpy sgemm {peak:.0f} GFLOP/s, {rate / peak:.0%}"
            conditions = {**shape.conditions, "threads": threads}
            yield line, figures_of("prefill", "GFLOP/s", rate, "numpy sgemm", peak, conditions)


def figures_of(
    name: str, unit: str, rate: float, limit_name: str, limit: float, conditions: dict[str, Condition]
) -> list[Figure]:
    """The figures of a rate, of the limit measured next to it, and of the rate's share of the limit."""
    return [
        Figure(name=name, value=rate, unit=unit, conditions=conditions),
        Figure(name=limit_name, value=limit, unit=unit, conditions=conditions),
        Figure(name=f"{name}, share of {limit_name}", value=100 * rate / limit, unit="%", conditions=conditions),
    ]


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("--threads", default="1,2", help="thread counts, comma-separated")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each line; the best run counts")
    parser.add_argument("--only", choices=["decode", "prefill"], help="one of the two parts")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Print one line per measurement."""
    options = make_parser().parse_args(arguments)
    print(f"kernels: {cpu_isa()}")
    figures: list[Figure] = []
    buffer = np.ones(GIB // 4 if options.only in (None, "decode") else 0, np.float32)
    for threads in map(int, options.threads.split(",")):
        print(f"{threads} thread(s)")
        with ThreadPoolExecutor(threads) as pool:
            if options.only in (None, "decode"):
                figures += print_lines(decode_lines(threads, options.seconds, buffer, pool))
        if options.only in (None, "prefill"):
            figures += print_lines(prefill_lines(threads, options.seconds))
    save(options.results, NAME, arguments, figures, notes=f"kernels: {cpu_isa()}")


if __name__ == "__main__":
    main(sys.argv[1:])
