"""Requests that run at once in a cache of fixed bytes, with the full cache and with one of a fixed size, and their time.

    enginewright build --model examples/tiny-reasoner --output FULL --kv-bits 16 --max-batch 256
    enginewright build --model examples/tiny-reasoner --output EVICTING --kv-bits 16 --max-batch 256 --apply evict:budget=512
    python -m benchmarks.speed.evicted_requests FULL EVICTING --memory 0.0625 --tokens 4096

Both engines serve the same problems greedily, each request up to --tokens tokens, whatever ends its answer. The problems are
those whose question and solution the budget covers: so answers, up to their end, have to be equal, and what comes after them
makes the requests long. There are as many problems as the evicting engine runs at once. Each engine runs as many at once as
its requests' tiles leave room for; a preempted one would show in the number of tokens computed. The engines take turns.
Table: docs/methods/evict.md, "Size and time". Limit: the memory divided by the bytes of a request's tiles.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.results_file import Condition, Figure, benchmark_parser, save
from enginewright.runtime import Sampling, load
from enginewright.runtime.cache.capacity import cache_bytes, copies_bytes, fit_cache_tokens, request_bytes
from enginewright.runtime.cache.policy import tokens_before_eviction
from enginewright.runtime.errors import EnginewrightError, UnsupportedError
from enginewright.runtime.evaluation.candidates import Candidate, open_candidates
from enginewright.runtime.evaluation.problems import KINDS, LEVELS, held_out_problems
from enginewright.runtime.evaluation.questions import Question, make_questions
from enginewright.runtime.scheduling.step_loop import StepTiming

NAME = "benchmarks.speed.evicted_requests"
STEP_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class ServingSide:
    """An engine of the comparison; `main` creates it.

    rows: requests at once.
    seconds, answers, computed, together: of each turn: its time, its answers up to their ends, the tokens computed, and the
        most requests that got a token in one step.
    """

    name: str
    candidate: Candidate
    rows: int
    seconds: list[float] = field(default_factory=list)
    answers: list[list[tuple[int, ...]]] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)
    together: list[int] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """Let both engines serve the problems, in turns, and print how they differ."""
    args = make_parser().parse_args(arguments)
    memory = int(args.memory * 2**30)
    full, evicting = open_candidates([str(args.full), str(args.evicting)], None)
    questions = pick_questions(evicting, args.level, args.seed)
    prompt = max(len(question.prompt) for question in questions)
    rows = [requests_in(each, memory, args.tokens, prompt) for each in (full, evicting)]
    sides = [
        ServingSide(name=name, candidate=each, rows=count)
        for name, each, count in zip(("full cache", "evicting"), (full, evicting), rows, strict=True)
    ]
    chosen = questions[: rows[1]]
    if len(chosen) < rows[1]:
        raise UnsupportedError(f"{NAME}: got {len(chosen)} problems, expected {rows[1]}; use less --memory")
    for turn in range(args.turns):
        for side in sides[:: 1 if turn % 2 else -1]:
            serve(side, chosen, memory, args.tokens, args.threads)
    print(table(sides, args.tokens))
    save(args.results, NAME, arguments, figures_of(sides, args.tokens))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("full", type=Path, help="engine whose cache keeps everything")
    parser.add_argument("evicting", type=Path, help="engine of the same model with evict")
    parser.add_argument("--memory", type=float, default=0.0625, help="memory of the cache in GiB")
    parser.add_argument("--tokens", type=int, default=4096, help="length of a request, prompt and completion")
    parser.add_argument("--level", default="standard", choices=LEVELS, help="of the problems")
    parser.add_argument("--turns", type=int, default=2, help="of each engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser


def pick_questions(evicting: Candidate, level: str, seed: int) -> list[Question]:
    """Return problems whose question and solution end before anything leaves the evicting engine's cache."""
    covered = tokens_before_eviction(evicting.manifest.cache)
    problems = [each for kind in KINDS for each in held_out_problems(kind, level, 200, seed)]
    questions = make_questions(evicting, problems, evicting.manifest.limits.max_context)
    return [each for each in questions if len(each.prompt) + each.max_tokens <= covered]


def requests_in(candidate: Candidate, memory: int, tokens: int, prompt_tokens: int) -> int:
    """Return how many requests of `tokens` tokens fit into `memory` bytes of cache."""
    cache = candidate.manifest.cache
    free = memory - copies_bytes(cache, candidate.manifest.limits.max_context)
    return max(free, 0) // request_bytes(cache, tokens, prompt_tokens=prompt_tokens)


def serve(side: ServingSide, questions: Sequence[Question], memory: int, tokens: int, threads: int) -> None:
    """Let an engine serve all problems, with its cache in `memory` bytes, and note how it went."""
    manifest = side.candidate.manifest
    sizes = {"rows": side.rows, "context": manifest.limits.max_context, "step_tokens": STEP_TOKENS}
    held = fit_cache_tokens(manifest.cache, budget=memory, **sizes)
    together = computed = 0
    with load(
        side.candidate.root,
        threads,
        max_batch=side.rows,
        cache_tokens=held,
        prefill_chunk=STEP_TOKENS,
        prefix_reuse=False,
        verify=False,
    ) as llm:
        used = cache_bytes(manifest.cache, llm.capacity.tiles, side.rows)
        if used > memory:
            raise UnsupportedError(f"{NAME}: got a cache of {used} bytes, expected at most {memory}; use more --memory")

        def watch(step: StepTiming) -> None:
            nonlocal together, computed
            together, computed = max(together, step.sampled), computed + step.tokens

        llm.loop.observer = watch
        samplings = [
            Sampling(max_tokens=tokens - len(each.prompt), ignore_eos=True, model_defaults=False) for each in questions
        ]
        start = time.perf_counter()
        done = llm.generate([list(each.prompt) for each in questions], samplings)
        side.seconds.append(time.perf_counter() - start)
    ends = frozenset(manifest.model.eos_token_ids)
    side.answers.append([up_to_end(each.token_ids, ends) for each in done])
    side.together.append(together)
    side.computed.append(computed)


def up_to_end(tokens: Sequence[int], ends: frozenset[int]) -> tuple[int, ...]:
    """Return the tokens up to the first that ends an answer; all of them where none does."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tuple(tokens[: place + 1])
    return tuple(tokens)


def equal_answers(sides: Sequence[ServingSide]) -> int:
    """The number of problems that both sides answer with the same tokens, in every turn."""
    turns = [answers for side in sides for answers in side.answers]
    return sum(len(set(of_problem)) == 1 for of_problem in zip(*turns, strict=True))


def table(sides: Sequence[ServingSide], tokens: int) -> str:
    """The comparison as a table."""
    count = len(sides[0].answers[0])
    lines = [f"{count} requests of {tokens} tokens; {equal_answers(sides)} equal answers", ""]
    lines += ["| cache | at once | tokens computed | tokens/s, best | tokens/s, median |", "|---|---|---|---|---|"]
    for side in sides:
        rates = rates_of(side, tokens)
        cells = (side.name, max(side.together), side.computed[-1], round(max(rates)), round(statistics.median(rates)))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    full, evicting = sides
    lines.append(f"\nat once: {max(evicting.together) / max(full.together):.2f} times")
    lines.append(f"tokens/s: {min(full.seconds) / min(evicting.seconds):.2f} times")
    return "\n".join(lines)


def rates_of(side: ServingSide, tokens: int) -> list[float]:
    """Tokens of prompts and completions per second, of each turn."""
    return [len(side.answers[0]) * tokens / seconds for seconds in side.seconds]


def figures_of(sides: Sequence[ServingSide], tokens: int) -> list[Figure]:
    """The figures of the table."""
    full, evicting = sides
    about: dict[str, Condition] = {"requests": len(full.answers[0]), "tokens of a request": tokens}
    found = [
        Figure(name="equal answers", value=equal_answers(sides), unit="problems", conditions=about),
        Figure(
            name="at once, evicting / full",
            value=max(evicting.together) / max(full.together),
            unit="times",
            conditions=about,
        ),
        Figure(
            name="tokens/s, evicting / full, best",
            value=min(full.seconds) / min(evicting.seconds),
            unit="times",
            conditions=about,
        ),
    ]
    for side in sides:
        own: dict[str, Condition] = {**about, "cache": side.name}
        rates = rates_of(side, tokens)
        found.append(Figure(name="requests at once", value=max(side.together), unit="requests", conditions=own))
        found.append(Figure(name="tokens computed", value=side.computed[-1], unit="tokens", conditions=own))
        found.append(Figure(name="tokens/s, best", value=max(rates), unit="tokens/s", conditions=own))
        found.append(Figure(name="tokens/s, median", value=statistics.median(rates), unit="tokens/s", conditions=own))
    return found


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EnginewrightError as error:
        sys.exit(str(error))
