"""Time that Depth-Attention adds to a decode step: engines of one model with and without it take steps in turn.

    python -m enginewright.exporters.source.synthetic --like qwen2-0.5b --output CHECKPOINT
    python -m benchmarks.speed.depth_cost --checkpoint CHECKPOINT --work DIR --weights int4 --threads 2

Figures: docs/benchmarks.md, "Depth-Attention: cost". On a machine that is not idle, chance is larger than the effect. Then
the last line counts: the best time of a graph of the DepthMix nodes alone, each on its own inputs.

The command writes to DIR, unless they are there, a copy of the checkpoint whose config asks for Depth-Attention (its weights
are links) and both engines. Their weights are equal, so both engines read the same file, and its place in memory favours
neither. A third side is the plain engine loaded a second time; it shows how much of a difference is chance.

All sides are loaded in one process and decode in turn, a few steps each, in an order that reverses every turn. A step runs the
whole graph for one new token over a cache that holds `--context` tokens. The place of a session's memory makes it up to 6 %
faster or slower for its whole life, so every round loads all sides anew, each first in a third of the rounds. The command
prints each side's best and median step, and the median over rounds of a side's median step relative to the plain engine's,
with the interval that contains half of the rounds and a 95 % interval of the median (bootstrap over rounds).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from benchmarks.results_file import Condition, Figure, benchmark_parser, save
from benchmarks.speed.turns import measure
from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe, parse_weights
from enginewright.plugins.libraries.locate import ort_library
from enginewright.plugins.ops.op import DOMAIN
from enginewright.runtime import load
from enginewright.runtime.artifact import directory
from enginewright.runtime.backends.session import PackedStep
from enginewright.runtime.llm import LLM

NAME = "benchmarks.speed.depth_cost"
SIDES = {"plain": "plain", "mixed": "mixed", "plain again": "plain"}
ONE_ROW: dict[str, Any] = {"max_batch": 1, "prefix_reuse": False, "verify": False}
WARM, TURN = 2, 12  # untimed and timed steps of a turn


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a model without Depth-Attention")
    parser.add_argument("--work", type=Path, required=True, help="folder for the engines")
    parser.add_argument("--weights", default="int4", help="as for `enginewright build`")
    parser.add_argument("--stride", type=int, help="default: half the number of layers")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=24, help="loads of every side")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side in a round")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Build what is missing, run the rounds, and compare."""
    args = make_parser().parse_args(arguments)
    make_engines(args.checkpoint, args.work, args.weights, args.stride)
    rounds = []
    for number in range(args.rounds):
        first = number % len(SIDES)
        names = [*SIDES][first:] + [*SIDES][:first]
        with ExitStack() as stack:
            llms = {name: stack.enter_context(load(args.work / SIDES[name], args.threads, **ONE_ROW)) for name in names}
            rounds.append(
                measure(
                    {name: DecodingEngine(llm, args.context) for name, llm in llms.items()},
                    args.turns,
                    warm=WARM,
                    timed=TURN,
                )
            )
    times = np.array([[each[name] for each in rounds] for name in SIDES])
    figures = report(times)
    nodes, spent = nodes_alone(args.work / "mixed", args.threads)
    print(
        f"{nodes} DepthMix nodes alone: {spent * 1e6:.1f} us, {100 * spent / times[0].min():.2f} % of the best plain step"
    )
    about: dict[str, Condition] = {"nodes": nodes}
    share = 100 * spent / float(times[0].min())
    figures.append(Figure(name="DepthMix nodes alone", value=spent * 1e6, unit="us", conditions=about))
    figures.append(Figure(name="the same, share of the best plain step", value=share, unit="%", conditions=about))
    save(args.results, NAME, arguments, figures)
    return 0


def make_engines(checkpoint: Path, work: Path, weights: str, stride: int | None) -> None:
    """Build the engines that do not exist yet."""
    source = work / "checkpoint"
    if not source.exists():
        source.mkdir(parents=True)
        for file in checkpoint.resolve().iterdir():
            if file.name != "config.json":
                (source / file.name).symlink_to(file)
        config = json.loads((checkpoint / "config.json").read_text())
        depth = {"stride": stride or config["num_hidden_layers"] // 2, "recent": 0}
        (source / "config.json").write_text(json.dumps({**config, "depth_attention": depth}))
    for name, model in (("plain", checkpoint), ("mixed", source)):
        if not (work / name).exists():
            build(str(model), work / name, Recipe(weights=parse_weights(weights)), "onnxruntime")
    plain, mixed = (directory.load(work / name).graphs["decoder"].files[1] for name in ("plain", "mixed"))
    assert plain.sha256 == mixed.sha256, "the engines' weights differ"
    (work / "mixed" / mixed.path).unlink()
    (work / "mixed" / mixed.path).hardlink_to(work / "plain" / plain.path)


class DecodingEngine:
    """One loaded engine whose tables say that its only row holds `context` tokens."""

    def __init__(self, llm: LLM, context: int) -> None:
        self.session, tables = llm.loop.session, llm.loop.scheduler.tables
        assert tables.grow(np.array([context])), "the cache is too small"
        tables.advance(np.array([context]))
        assert tables.grow(np.array([1])), "the cache is too small"
        starts = np.array([0, 1], np.int32)
        self._step = PackedStep(np.array([7]), np.array([context]), starts, np.array([0]))

    def step(self) -> float:
        """Decode the token after the context once more; return the seconds."""
        begin = time.perf_counter()
        self.session.run(self._step)
        return time.perf_counter() - begin


def report(times: np.ndarray) -> list[Figure]:
    """Print and return the sides' figures.

    times: [sides, rounds, steps] in seconds.
    """
    figures = []
    rng = np.random.default_rng(0)
    medians = np.median(times, axis=2)
    for name, steps, each in zip(SIDES, times, medians, strict=True):
        print(f"{name:11}  best {steps.min() * 1e3:7.3f} ms, median {np.median(steps) * 1e3:7.3f} ms", end="")
        about: dict[str, Condition] = {"side": name}
        figures.append(Figure(name="best step", value=float(steps.min()) * 1e3, unit="ms", conditions=about))
        if name != "plain":
            ratios = 100 * (each / medians[0] - 1)
            low, high = np.percentile(np.median(rng.choice(ratios, (2000, len(ratios))), axis=1), [2.5, 97.5])
            half = np.percentile(ratios, [25, 75])
            slower, interval = float(np.median(ratios)), (float(low), float(high))
            figures.append(
                Figure(name="longer than plain", value=slower, unit="%", conditions=about, interval=interval)
            )
            print(f"; against plain: best {100 * (steps.min() / times[0].min() - 1):+.2f} %, ", end="")
            print(f"median round {np.median(ratios):+.2f} % [{low:+.2f}, {high:+.2f}], ", end="")
            print(f"half of the rounds {half[0]:+.2f} to {half[1]:+.2f} %", end="")
        print(flush=True)
    return figures


def nodes_alone(root: Path, threads: int) -> tuple[int, float]:
    """The number of DepthMix nodes in the engine at `root`, and the best seconds of a graph of these nodes alone."""
    graph = ir.load(root / directory.load(root, verify=False).graphs["decoder"].files[0].path).graph
    mixes = [node for node in graph if node.op_type == "DepthMix"]
    infos, nodes, feeds = [], [], {}
    for number, node in enumerate(mixes):
        names = [f"in{number}.{i}" for i in range(len(node.inputs))]
        for name, value in zip(names, node.inputs, strict=True):
            assert value is not None and value.shape is not None
            shape = [1, *(int(size) for size in value.shape[1:])]  # type: ignore[arg-type]  # none is symbolic
            infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
            feeds[name] = ort.OrtValue.ortvalue_from_numpy(np.random.default_rng(0).random(shape, np.float32))
        scale = node.attributes.get_float("scale", 1.0)
        nodes.append(helper.make_node("DepthMix", names, [f"out{number}"], domain=DOMAIN, scale=scale))
    outputs = [helper.make_tensor_value_info(f"out{n}", TensorProto.FLOAT, [None] * 3) for n in range(len(nodes))]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", infos, outputs), opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(ort_library()))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, value)
    for output in outputs:
        binding.bind_output(output.name)
    best = float("inf")
    for _ in range(3000):
        begin = time.perf_counter()
        session.run_with_iobinding(binding)
        best = min(best, time.perf_counter() - begin)
    return len(nodes), best


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
