"""`enginewright bench`: speed and memory of an engine on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from tqdm import tqdm

from enginewright.runtime.cache.eviction_watch import EvictionWatch
from enginewright.runtime.cache.policy import policy_line
from enginewright.runtime.cache.policy_tables import PolicyTables
from enginewright.runtime.errors import RequestError
from enginewright.runtime.llm import LLM
from enginewright.runtime.loader import load
from enginewright.runtime.machine import physical_cores
from enginewright.runtime.requests.sampling import Sampling
from enginewright.runtime.scheduling.step_loop import StepTiming

_WARM_UP = 4


@dataclass(frozen=True, kw_only=True)
class EvictionMeasurement:
    """The cost of evictions, and what they save.

    policy: the manifest's `cache.policy`.
    time_share: of the time from the first request to the last token.
    tokens: tokens that have left, counted in each head of each layer.
    peak_bytes: the most that the tiles of requests took at once.
    full_bytes: the most that they would have taken without the policy.
    """

    policy: dict[str, Any]
    time_share: float
    tokens: int
    peak_bytes: int
    full_bytes: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The measurement of one batch size: the repeat with the best decode speed.

    Times are in milliseconds, speeds in tokens per second.

    first_token_ms: from submission, median over the requests.
    token_p50_ms, token_p99_ms: between a request's steps.
    overhead_ms: time of a decode step outside the backend, median.
    tokens_per_step: of one request.
    agreement: share of guessed tokens that the model itself would have chosen; None where nothing was guessed.
    evicting: None without a cache policy.
    """

    batch: int
    threads: int
    prompt_tokens: int
    new_tokens: int
    first_token_ms: float
    token_p50_ms: float
    token_p99_ms: float
    prefill_speed: float
    decode_speed: float
    overhead_ms: float
    peak_memory_mib: float
    tokens_per_step: float = 1.0
    agreement: float | None = None
    evicting: EvictionMeasurement | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("engine", metavar="DIR", help="engine directory")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="random ids (default: 128)")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="per request (default: 64)")
    parser.add_argument("--batch", default="1,8", metavar="N,N", help="requests at once (default: 1,8)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")
    parser.add_argument(
        "--backend", metavar="NAME", help="engine of the directory to run (default: the first that can)"
    )
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs, the best counts (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def run(arguments: argparse.Namespace) -> int:
    """Measure every batch size and print the results."""
    batches = _parse_batches(arguments.batch)
    for name in ("prompt_tokens", "repeat"):
        if getattr(arguments, name) < 1:
            raise RequestError(f"--{name.replace('_', '-')}: got {getattr(arguments, name)}, expected 1 or more")
    if arguments.new_tokens < 4 + _WARM_UP:
        raise RequestError(f"--new-tokens: got {arguments.new_tokens}, expected {4 + _WARM_UP} or more")
    results = []
    with load(
        arguments.engine,
        arguments.threads,
        max_batch=max(batches),
        prefix_reuse=False,
        backend=arguments.backend,
    ) as llm:
        runs = [batch for batch in batches for _ in range(arguments.repeat)]
        threads = arguments.threads or physical_cores()
        llm.generate(
            [0] * arguments.prompt_tokens, Sampling(max_tokens=2, ignore_eos=True, model_defaults=False)
        )  # first runs allocate
        measured = [
            _measure(llm, batch, arguments.prompt_tokens, arguments.new_tokens, threads)
            for batch in tqdm(runs, desc="bench", disable=None)
        ]
    for batch in batches:
        results.append(max((m for m in measured if m.batch == batch), key=lambda m: m.decode_speed))
    print(
        json.dumps([dataclasses.asdict(result) for result in results], indent=2) if arguments.json else _table(results)
    )
    return 0


def _measure(llm: LLM, batch: int, prompt_tokens: int, new_tokens: int, threads: int) -> Measurement:
    """Serve `batch` random prompts at once and time every step."""
    rng = np.random.default_rng(batch)
    prompts = [rng.integers(0, llm.manifest.model.vocab_size, prompt_tokens).tolist() for _ in range(batch)]
    steps: list[StepTiming] = []
    tables, watch = llm.loop.scheduler.tables, EvictionWatch(llm.manifest.cache)
    evicts = isinstance(tables, PolicyTables)
    if isinstance(tables, PolicyTables):
        tables.watch = watch
    llm.loop.observer = steps.append
    start = time.perf_counter()
    completions = llm.generate(prompts, Sampling(max_tokens=new_tokens, ignore_eos=True, model_defaults=False))
    llm.loop.observer = None
    steps = [step for step in steps if step.start >= start]  # the last step of an earlier run may report late
    # a request that has its first token gets one more in every step, so `sampled` counts those that have started
    firsts = [next((s.end for s in steps if s.sampled > rank), steps[-1].end) - start for rank in range(batch)]
    most = batch * llm.capacity.width
    decodes = [
        (b.end - a.end, b.backend_seconds, b.decided)
        for a, b in pairwise(steps)
        if a.sampled == b.sampled == batch and b.tokens <= most
    ]
    if len(decodes) <= _WARM_UP:
        raise RequestError(
            f"--new-tokens: got {new_tokens}, too few for {batch} requests to decode together; ask for more"
        )
    walls, backend, decided = np.array(decodes[_WARM_UP:]).T * np.array([[1e3], [1e3], [1.0]])
    guessed = sum(completion.guessed_tokens for completion in completions)
    return Measurement(
        batch=batch,
        threads=threads,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        first_token_ms=float(np.median(firsts)) * 1e3,
        token_p50_ms=float(np.percentile(walls, 50)),
        token_p99_ms=float(np.percentile(walls, 99)),
        prefill_speed=batch * prompt_tokens / max(firsts),
        decode_speed=float(decided.sum() / walls.sum()) * 1e3,
        overhead_ms=float(np.median(walls - backend)),
        peak_memory_mib=_peak_memory() / 2**20,
        tokens_per_step=float(decided.mean()) / batch,
        agreement=sum(completion.agreed_tokens for completion in completions) / guessed if guessed else None,
        evicting=_evicting(llm, watch, steps[-1].end - start) if evicts else None,
    )


def _evicting(llm: LLM, watch: EvictionWatch, seconds: float) -> EvictionMeasurement:
    return EvictionMeasurement(
        policy=llm.manifest.cache.policy,
        time_share=watch.seconds / seconds,
        tokens=watch.tokens,
        peak_bytes=watch.peak_bytes,
        full_bytes=watch.full_bytes,
    )


def _eviction_columns(results: list[Measurement]) -> list[list[str]]:
    """Return the columns of evictions: their titles, then a line for each result."""
    lines = [["evicting %", "evicted", "held MiB", "full MiB"]]
    for each in (result.evicting for result in results):
        assert each is not None, "one engine has one policy"
        lines.append(
            [
                f"{100 * each.time_share:.1f}",
                str(each.tokens),
                f"{each.peak_bytes / 2**20:.1f}",
                f"{each.full_bytes / 2**20:.1f}",
            ]
        )
    return lines


def _peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _parse_batches(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise RequestError(f"--batch: got {text!r}, expected whole numbers with commas, such as 1,8")
    return [int(part) for part in parts]


def _table(results: list[Measurement]) -> str:
    columns: tuple[tuple[str, str, str], ...] = (
        ("batch", "batch", "d"),
        ("first token ms", "first_token_ms", ".1f"),
        ("token p50 ms", "token_p50_ms", ".2f"),
        ("p99 ms", "token_p99_ms", ".2f"),
        ("prefill tok/s", "prefill_speed", ".0f"),
        ("decode tok/s", "decode_speed", ".1f"),
        ("overhead ms", "overhead_ms", ".3f"),
        ("peak MiB", "peak_memory_mib", ".0f"),
    )
    if any(result.agreement is not None for result in results):
        columns += (("tokens per step", "tokens_per_step", ".2f"), ("agreement", "agreement", ".3f"))
    rows = [[title for title, _, _ in columns]]
    rows += [
        ["-" if getattr(result, name) is None else format(getattr(result, name), form) for _, name, form in columns]
        for result in results
    ]
    if any(result.evicting is not None for result in results):
        rows = [row + more for row, more in zip(rows, _eviction_columns(results), strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first = results[0]
    title = f"{first.prompt_tokens} prompt tokens, {first.new_tokens} new tokens, {first.threads} threads"
    if first.evicting is not None:
        title += f"\npolicy {policy_line(first.evicting.policy)}"
    return "\n".join([title, *("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows)])
