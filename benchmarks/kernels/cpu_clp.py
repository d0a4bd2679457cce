"""Time of ClpEmit on a CPU at the shape of a 0.5B model, with L extra tokens and with none.

    python -m benchmarks.kernels.cpu_clp [--threads 1,2] [--seconds 3] [--k 3]

Table: docs/benchmarks.md, "Extra heads: speed", the sentence on steps where no head runs. Needs numpy, onnx and onnxruntime,
and 2 GiB of memory.

Limit: the heads that run are read once, so an emission cannot be faster than plain reads of their bytes. An emission without
extra tokens is compared with a decode step's read of the backbone's weights, at the speed of plain reads. Every figure is the
best of many short runs, which alternate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchmarks.kernels.cpu_attention import GIB, SLICE, Line, best_times, reader
from benchmarks.results_file import Condition, Figure, benchmark_parser, print_lines, save
from enginewright.plugins.libraries.cpu import cpu_isa
from enginewright.plugins.libraries.locate import ort_library
from enginewright.plugins.ops.clp_emit import CLP_EMIT
from enginewright.plugins.ops.op import DOMAIN

NAME = "benchmarks.kernels.cpu_clp"
HIDDEN, VOCAB, BACKBONE = 896, 151_936, 494_000_000
"""Hidden size, vocabulary and parameters of Qwen2.5-0.5B."""
NODES = 65  # nodes of a graph that shows the cost of one node without the overhead of a run

Arrays = dict[str, NDArray[Any]]


def inputs(k: int, codes: bool, batch: int, rng: np.random.Generator) -> Arrays:
    """Heads of half the hidden size, with values of ordinary magnitude; `always` gives the classifier's bias."""
    extra, inner = k - 1, HIDDEN // 2
    arrays: Arrays = {
        "hidden": rng.standard_normal((batch, HIDDEN), np.float32),
        "greedy": np.zeros(batch, np.int64),
        "classifier_weight": np.zeros((k, HIDDEN), np.float32),
        "up_weight": rng.standard_normal((extra, inner, HIDDEN), np.float32) / 30,
        "up_bias": np.zeros((extra, inner), np.float32),
        "out_bias": np.zeros((extra, VOCAB), np.float32),
    }
    if codes:
        scales = np.full((extra, VOCAB), 0.01, np.float32)
        return {**arrays, "out_codes": rng.integers(-127, 128, (extra, VOCAB, inner), np.int8), "out_scales": scales}
    return {**arrays, "out_weight": rng.standard_normal((extra, VOCAB, inner), np.float32)}


def always(k: int, length: int) -> NDArray[np.float32]:
    """The bias of a classifier that always says `length`."""
    return np.where(np.arange(k) == length, 50, 0).astype(np.float32)


def emission(values: dict[str, Any], k: int, length: int, threads: int, nodes: int = 1) -> Callable[[], object]:
    """A function that runs `nodes` equal nodes on the bound inputs."""
    types = {"float32": TensorProto.FLOAT, "int8": TensorProto.INT8, "int64": TensorProto.INT64}
    names = [t.name if t.name in values or t.name == "classifier_bias" else "" for t in CLP_EMIT.inputs]
    given = [t for t in CLP_EMIT.inputs if t.name in names]
    made = [
        helper.make_node("ClpEmit", names, [f"tokens.{i}", f"counts.{i}"], domain=DOMAIN, k=k, tau=0.3)
        for i in range(nodes)
    ]
    graph = helper.make_graph(
        made,
        "bench",
        [helper.make_tensor_value_info(t.name, types[t.types[0]], [None] * len(t.shape)) for t in given],
        [helper.make_tensor_value_info(f"counts.{i}", TensorProto.INT64, [None]) for i in range(nodes)],
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )  # the optimiser would merge equal nodes
    options.register_custom_ops_library(str(ort_library()))
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, CLP_EMIT.version)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    session = ort.InferenceSession(model, options, ["CPUExecutionProvider"])
    binding = session.io_binding()
    bias = ort.OrtValue.ortvalue_from_numpy(always(k, length))
    for name, value in {**values, "classifier_bias": bias}.items():
        binding.bind_ortvalue_input(name, value)
    for i in range(nodes):
        binding.bind_output(f"counts.{i}")
    return lambda: bias and session.run_with_iobinding(binding)


def lines(k: int, threads: int, seconds: float, buffer: NDArray[np.float32]) -> Iterator[Line]:
    """One line for each storage, batch and length."""
    for codes in (False, True):
        for batch in (1, 8):
            arrays = inputs(k, codes, batch, np.random.default_rng(0))
            values = {name: ort.OrtValue.ortvalue_from_numpy(x) for name, x in arrays.items()}
            head = VOCAB * HIDDEN // 2 * (1 if codes else 4)
            where = f"{'int8' if codes else 'float32'} heads, batch {batch}"
            with ThreadPoolExecutor(threads) as pool:
                many, one, read = best_times(
                    seconds,
                    emission(values, k, 0, threads, NODES),
                    emission(values, k, 0, threads),
                    reader(buffer, threads, pool),
                )
                stream = SLICE / read
                none = (many - one) / (NODES - 1)
                bounds = ", ".join(f"{none * stream / (BACKBONE * bits / 8):.4%} ({bits} bits)" for bits in (4, 8, 32))
                shape: dict[str, Condition] = {
                    "storage": "int8" if codes else "float32",
                    "batch": batch,
                    "threads": threads,
                }
                nothing = Figure(name="emission of no token", value=none * 1e6, unit="us", conditions=shape)
                yield f"{where}, L = 0: {none * 1e6:.1f} us; of a step at least: {bounds}", [nothing]
                for length in range(1, k):
                    (taken,) = best_times(seconds, emission(values, k, length, threads))
                    rate = length * head / taken
                    line = (
                        f"{where}, L = {length}: {taken * 1e3:.2f} ms, {rate / 1e9:.1f} GB/s, stream "
                        f"{stream / 1e9:.1f} GB/s, {rate / stream:.0%}"
                    )
                    shape = {**shape, "extra tokens": length}
                    found = [
                        Figure(name="emission", value=taken * 1e3, unit="ms", conditions=shape),
                        Figure(name="share of plain read", value=100 * rate / stream, unit="%", conditions=shape),
                    ]
                    yield line, found


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("--threads", default="1,2", help="thread counts, comma-separated")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each line; the best run counts")
    parser.add_argument("--k", type=int, default=3, help="tokens of one emission")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Print one line per measurement."""
    options = make_parser().parse_args(arguments)
    print(f"kernels: {cpu_isa()}")
    figures: list[Figure] = []
    buffer = np.ones(GIB // 4, np.float32)
    for threads in map(int, options.threads.split(",")):
        print(f"{threads} thread(s)")
        figures += print_lines(lines(options.k, threads, options.seconds, buffer))
    save(options.results, NAME, arguments, figures, notes=f"kernels: {cpu_isa()}")


if __name__ == "__main__":
    main(sys.argv[1:])
