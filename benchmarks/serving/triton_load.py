"""Throughput and time to first token of a real tritonserver on the loopback interface, compared with this process.

    python build_engine.py --model examples/tiny-reasoner --output engines/tiny-reasoner
    python -m benchmarks.serving.triton_load engines/tiny-reasoner --threads 2

Table: docs/benchmarks.md, "Triton: load". Limit: the runtime in process, with the same batch; server and clients share the
machine's cores. Both sides answer the same random prompts, one after the other in each round, so that drift of the machine's
speed slows both. Throughput is the number of all tokens of `--streams` requests that start together, divided by the time
until the last one has ended; each served request has its own gRPC stream. Time to first token is measured with one request at
a time, from call to first response.

--server DIR keeps the server's virtual environment there for the next run. --only served|in-process profiles one side.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.results_file import Condition, Figure, benchmark_parser, save
from enginewright.builders.triton.repository import TritonModel, write_model
from enginewright.runtime import LLM, Sampling, load
from tests.support.serving import tritonserver
from tests.support.serving.streams import MODEL, Stream

NAME = "benchmarks.serving.triton_load"
Prompts = Sequence[list[int]]
Measure = Callable[[Prompts, int], tuple[float, list[float]]]
"""A function that answers the prompts with the given number of tokens each.

It returns the seconds, and each request's time to first token.
"""


def measure_in_process(llm: LLM) -> Measure:
    """A function that answers in this process."""

    def measure(prompts: Prompts, tokens: int) -> tuple[float, list[float]]:
        firsts = dict[int, float]()
        start = time.perf_counter()

        def take(number: int) -> Callable[[object], None]:
            def note(_: object) -> None:
                firsts.setdefault(number, time.perf_counter() - start)

            return note

        sampling = Sampling(max_tokens=tokens, ignore_eos=True, model_defaults=False)
        handles = [llm.submit(prompt, sampling, on_event=take(i)) for i, prompt in enumerate(prompts)]
        for handle in handles:
            assert len(handle.result().token_ids) == tokens
        return time.perf_counter() - start, list(firsts.values())

    return measure


def measure_served(streams: Sequence[Stream], pool: ThreadPoolExecutor) -> Measure:
    """A function that answers through a server, each request over its own stream."""

    def measure(prompts: Prompts, tokens: int) -> tuple[float, list[float]]:
        start = time.perf_counter()

        def ask(stream: Stream, prompt: list[int]) -> float:
            name = stream.send(input_ids=prompt, max_tokens=tokens, ignore_eos=True, stream=True)
            first, count = 0.0, 0
            for response in stream.responses(name):
                assert response.error is None, response.error
                first = first or response.at - start
                count += len(response.outputs["token_ids"])
            assert count == tokens
            return first

        firsts = list(pool.map(ask, streams, prompts))
        return time.perf_counter() - start, firsts

    return measure


@contextlib.contextmanager
def open_server(arguments: argparse.Namespace, folder: Path) -> Iterator[tritonserver.Server]:
    """Yield a server of the engine, whose model repository lies in `folder`."""
    home = Path(arguments.server) if arguments.server else folder
    found = tritonserver.find(home / "venv") if (home / "venv").exists() else tritonserver.install(home)
    model = TritonModel(
        name=MODEL, threads=arguments.threads, max_batch=arguments.streams, cache_tokens=arguments.cache_tokens
    )
    write_model(Path(arguments.engine), folder / "repository", model)
    with tritonserver.serve(found, folder / "repository", folder / "log") as server:
        yield server


def compare(sides: dict[str, Measure], arguments: argparse.Namespace, vocabulary: int) -> list[Figure]:
    """Let the sides take turns, print the table, and return its figures."""
    rng = np.random.default_rng(0)
    speeds = {name: list[float]() for name in sides}
    firsts = {name: list[float]() for name in sides}

    def prompts(count: int) -> Prompts:
        return [rng.integers(0, vocabulary, arguments.prompt_tokens).tolist() for _ in range(count)]

    for turn in range(arguments.rounds + 1):  # the first one warms up
        asked, singles = prompts(arguments.streams), [prompts(1) for _ in range(arguments.singles)]
        for name, measure in sides.items():
            seconds, _ = measure(asked, arguments.new_tokens)
            alone = [measure(single, 2)[1][0] for single in singles]
            if turn:
                speeds[name].append(arguments.streams * arguments.new_tokens / seconds)
                firsts[name] += alone
    print(
        f"{arguments.streams} streams, {arguments.prompt_tokens} prompt and {arguments.new_tokens} new tokens, ", end=""
    )
    print(f"{arguments.threads or 'all'} threads, {arguments.rounds} rounds")
    print("| side | tokens/s, median | best | first token ms, median | 90 % |\n|---|---|---|---|---|")
    figures = []
    for name in sides:
        first = np.array(firsts[name]) * 1e3
        row = [f"{statistics.median(speeds[name]):.1f}", f"{max(speeds[name]):.1f}"]
        row += [f"{np.median(first):.2f}", f"{np.percentile(first, 90):.2f}"]
        print(f"| {name} | {' | '.join(row)} |")
        about: dict[str, Condition] = {"side": name}
        speed = statistics.median(speeds[name])
        figures.append(Figure(name="throughput, median", value=speed, unit="tokens/s", conditions=about))
        figures.append(Figure(name="first token, median", value=float(np.median(first)), unit="ms", conditions=about))
    if len(sides) == 2:
        one, two = speeds.values()
        ratios = [served / own for own, served in zip(one, two, strict=True)]
        added = [b - a for a, b in zip(*firsts.values(), strict=True)]
        print(
            f"served / in-process: median {statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}], ",
            end="",
        )
        print(
            f"best / best {max(two) / max(one):.3f}; first token adds {statistics.median(added) * 1e3:.2f} ms, median"
        )
        figures.append(Figure(name="served / in process, median", value=statistics.median(ratios), unit="times"))
        figures.append(Figure(name="added to the first token", value=statistics.median(added) * 1e3, unit="ms"))
    return figures


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("engine", metavar="ENGINE")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--singles", type=int, default=5, help="lone requests of each side in a round")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cache-tokens", type=int, default=16384)
    parser.add_argument("--server", metavar="DIR")
    parser.add_argument("--only", choices=("served", "in-process"))
    return parser


def main(given: Sequence[str]) -> None:
    """Measure and print."""
    arguments = make_parser().parse_args(given)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        sides: dict[str, Measure] = {}
        options = {"max_batch": arguments.streams, "cache_tokens": arguments.cache_tokens, "verify": False}
        llm = stack.enter_context(load(arguments.engine, arguments.threads, **options))
        if arguments.only != "served":
            sides["in-process"] = measure_in_process(llm)
        if arguments.only != "in-process":
            server = stack.enter_context(open_server(arguments, Path(folder)))
            streams = [stack.enter_context(Stream(server)) for _ in range(arguments.streams)]
            sides["served"] = measure_served(streams, stack.enter_context(ThreadPoolExecutor(arguments.streams)))
        save(arguments.results, NAME, given, compare(sides, arguments, llm.manifest.model.vocab_size))


if __name__ == "__main__":
    main(sys.argv[1:])
