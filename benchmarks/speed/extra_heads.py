"""Answers and tokens a step of engines with extra heads, compared with the plain engine of the same model.

    python -m benchmarks.speed.extra_heads PLAIN ENGINE ... [--count 200] [--threads 1] [--level standard]

Table: docs/benchmarks.md, "Extra heads: answers". Requests run one after another. For each engine the command prints the
number of answers that equal the plain engine's token for token, the tokens a step, the share of the guesses that the model
itself would have made, the repetition, the right answers, and the speed-up over the plain engine in time per generated token.

Limit: the time of reading weights allows a speed-up of (tokens a step) / (1 + r x heads evaluated a step), where r is the
bytes of a head divided by those of the backbone. A small model's steps cost more than the reading of its bytes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.results_file import Condition, Figure, benchmark_parser, print_lines, save
from enginewright.runtime import Sampling, load
from enginewright.runtime.evaluation.problems import KINDS, Problem, answer_of, held_out_problems
from enginewright.runtime.evaluation.repetition import repetition_ratio
from enginewright.runtime.requests.completion import Completion

NAME = "benchmarks.speed.extra_heads"
SAMPLING = Sampling(max_tokens=1024, model_defaults=False)


@dataclass(frozen=True, kw_only=True)
class Run:
    """An engine's completions of all questions; created by `answer_all`.

    seconds: the time of each request from submission to its end.
    verified: whether the model checks the heads' guesses.
    """

    completions: list[Completion]
    seconds: list[float]
    verified: bool

    @property
    def tokens(self) -> int:
        """The number of generated tokens."""
        return sum(len(completion.token_ids) for completion in self.completions)

    @property
    def steps(self) -> int:
        """The number of steps that generated these tokens: each guessed token that stands saved one."""
        saved = (c.agreed_tokens if self.verified else c.guessed_tokens for c in self.completions)
        return self.tokens - sum(saved)


def answer_all(root: str, problems: list[Problem], threads: int) -> Run:
    """Ask an engine one question after another."""
    completions, seconds = [], []
    with load(root, threads=threads, prefix_reuse=False) as llm:
        prompts = [llm.apply_chat_template([{"role": "user", "content": p.question}]) for p in problems]
        llm.generate(prompts[0], SAMPLING)  # first runs allocate
        for prompt in prompts:
            start = time.perf_counter()
            completions.append(llm.generate([prompt], SAMPLING)[0])
            seconds.append(time.perf_counter() - start)
        verified = bool(llm.manifest.decoding.get("verify"))
    return Run(completions=completions, seconds=seconds, verified=verified)


def line(name: str, run: Run, plain: Run, problems: list[Problem]) -> tuple[str, list[Figure]]:
    """One row of the table, and its figures."""
    same = sum(a.token_ids == b.token_ids for a, b in zip(run.completions, plain.completions, strict=True))
    right = sum(answer_of(c.text) == p.answer for c, p in zip(run.completions, problems, strict=True))
    guessed = sum(completion.guessed_tokens for completion in run.completions)
    agreed = sum(completion.agreed_tokens for completion in run.completions)
    repetition = float(np.mean([repetition_ratio(completion.token_ids) for completion in run.completions]))
    per_token = sum(run.seconds) / run.tokens
    about: dict[str, Condition] = {"engine": name, "problems": len(problems)}
    figures = [
        Figure(name="same answer as plain", value=same, unit="answers", conditions=about),
        Figure(name="right", value=right, unit="answers", conditions=about),
        Figure(name="tokens a step", value=run.tokens / run.steps, unit="tokens", conditions=about),
        Figure(name="agreement", value=100 * agreed / max(1, guessed), unit="%", conditions=about),
        Figure(name="repetition", value=repetition, unit="share of 3-grams", conditions=about),
        Figure(name="time of a token", value=per_token * 1e3, unit="ms", conditions=about),
    ]
    row = (
        f"{name:24} {same:4}/{len(problems)} {run.tokens / run.steps:11.3f} {agreed / max(1, guessed):9.1%} "
        f"{repetition:11.3f} {right:4}/{len(problems)} {per_token * 1e3:9.3f} "
        f"{sum(plain.seconds) / plain.tokens / per_token:8.2f}"
    )
    return row, figures


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("plain", metavar="PLAIN", help="engine without extra heads")
    parser.add_argument("engines", nargs="+", metavar="ENGINE", help="engines with extra heads")
    parser.add_argument("--count", type=int, default=200, help="number of problems, a quarter of each kind")
    parser.add_argument("--level", default="standard")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run every engine and print the table."""
    options = make_parser().parse_args(arguments)
    problems = [
        p for kind in KINDS for p in held_out_problems(kind, options.level, options.count // len(KINDS), seed=0)
    ]
    plain = answer_all(options.plain, problems, options.threads)
    print(
        f"{'engine':24} {'same':>8} {'tokens/step':>11} {'agreement':>9} {'repetition':>11} {'right':>8} ms/token speed-up"
    )
    figures = print_lines([line(Path(options.plain).name, plain, plain, problems)])
    figures += print_lines(
        line(Path(root).name, answer_all(root, problems, options.threads), plain, problems) for root in options.engines
    )
    save(options.results, NAME, arguments, figures)


if __name__ == "__main__":
    main(sys.argv[1:])
