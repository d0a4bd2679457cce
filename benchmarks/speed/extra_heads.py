"""Answers and tokens a step of engines with extra heads, compared with the plain engine of the same model.

    python -m benchmarks.speed.extra_heads PLAIN ENGINE ... [--count 200] [--threads 1] [--level standard]
    python -m benchmarks.speed.extra_heads PLAIN ENGINE ... --chat --max-tokens 128

Tables: docs/methods/clp.md, "Quality"; with --chat: docs/benchmarks/real-models.md. Requests run one after another. --chat asks
the 48 prompts of benchmarks/chat_prompts.py, which have no right answers, instead of problems. For each engine the command prints the
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

from benchmarks.chat_prompts import TESTS
from benchmarks.quality.cache_tables import estimate_figure
from benchmarks.quality.token_scores import show
from benchmarks.results_file import Condition, Figure, benchmark_parser, print_lines, save
from enginewright.runtime import Sampling, load
from enginewright.runtime.evaluation import intervals
from enginewright.runtime.evaluation.intervals import Estimate
from enginewright.runtime.evaluation.problems import KINDS, answer_of, held_out_problems
from enginewright.runtime.evaluation.repetition import repetition_ratio
from enginewright.runtime.requests.completion import Completion

NAME = "benchmarks.speed.extra_heads"


@dataclass(frozen=True, kw_only=True)
class AskedPrompt:
    """A question that every engine answers; answer: the right one, None where there is none."""

    text: str
    answer: str | None = None


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


def answer_all(root: str, questions: list[AskedPrompt], threads: int, max_tokens: int) -> Run:
    """Ask an engine one question after another."""
    sampling = Sampling(max_tokens=max_tokens, model_defaults=False)
    completions, seconds = [], []
    with load(root, threads=threads, prefix_reuse=False) as llm:
        prompts = [llm.apply_chat_template([{"role": "user", "content": q.text}]) for q in questions]
        llm.generate(prompts[0], sampling)  # first runs allocate
        for prompt in prompts:
            start = time.perf_counter()
            completions.append(llm.generate([prompt], sampling)[0])
            seconds.append(time.perf_counter() - start)
        verified = bool(llm.manifest.decoding.get("verify"))
    return Run(completions=completions, seconds=seconds, verified=verified)


def line(name: str, run: Run, plain: Run, questions: list[AskedPrompt]) -> tuple[str, list[Figure]]:
    """One row of the table, and its figures."""
    pairs = list(zip(run.completions, plain.completions, strict=True))
    same = sum(a.token_ids == b.token_ids for a, b in pairs)
    begins = float(np.mean([shared_beginning(a.token_ids, b.token_ids) for a, b in pairs]))
    answered = [(c.text, q.answer) for c, q in zip(run.completions, questions, strict=True) if q.answer is not None]
    right = sum(answer_of(text) == answer for text, answer in answered)
    agreement = agreement_of(run)
    ratios = [(repetition_ratio(a.token_ids), repetition_ratio(b.token_ids)) for a, b in pairs]
    more = intervals.bootstrap(intervals.ratio([a - b for a, b in ratios], [1] * len(ratios)), len(ratios), 0)
    repetition = float(np.mean([ours for ours, _ in ratios]))
    per_token = sum(run.seconds) / run.tokens
    about: dict[str, Condition] = {"engine": name, "problems": len(questions)}
    figures = [
        Figure(name="same answer as plain", value=same, unit="answers", conditions=about),
        Figure(name="same beginning as plain", value=100 * begins, unit="% of plain's tokens", conditions=about),
        Figure(name="tokens a step", value=run.tokens / run.steps, unit="tokens", conditions=about),
        estimate_figure("agreement", "%", 100, agreement, about),
        Figure(name="repetition", value=repetition, unit="share of 3-grams", conditions=about),
        estimate_figure("repetition minus plain", "share of 3-grams", 1, more, about),
        Figure(name="time of a token", value=per_token * 1e3, unit="ms", conditions=about),
    ]
    if answered:
        figures.append(Figure(name="right", value=right, unit="answers", conditions=about))
    row = (
        f"{name:24} {same:4}/{len(questions)} {begins:7.1%} {run.tokens / run.steps:11.3f} "
        f"{show(agreement, '.1%'):>22} {repetition:10.3f} {show(more, '+.3f'):>24} "
        f"{f'{right}/{len(answered)}' if answered else '-':>8} {per_token * 1e3:8.3f} "
        f"{sum(plain.seconds) / plain.tokens / per_token:8.2f}"
    )
    return row, figures


def agreement_of(run: Run) -> Estimate:
    """The share of guesses that the model would have made itself, with an interval over the answers; 0 without guesses."""
    guessed = [completion.guessed_tokens for completion in run.completions]
    if not any(guessed):
        return Estimate(value=0.0)
    judged = [c for c in run.completions if c.guessed_tokens]
    return intervals.share_of_tokens([c.agreed_tokens for c in judged], [c.guessed_tokens for c in judged], 0)


def shared_beginning(ours: Sequence[int], theirs: Sequence[int]) -> float:
    """How many tokens both answers have in common from their beginning on, as a share of theirs."""
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return same / len(theirs)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("plain", metavar="PLAIN", help="engine without extra heads")
    parser.add_argument("engines", nargs="+", metavar="ENGINE", help="engines with extra heads")
    parser.add_argument("--count", type=int, default=200, help="number of problems, a quarter of each kind")
    parser.add_argument("--level", default="standard")
    parser.add_argument("--chat", action="store_true", help="ask prompts for a chat model instead of problems")
    parser.add_argument("--max-tokens", type=int, default=1024, help="of an answer (1024)")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def pick_questions(options: argparse.Namespace) -> list[AskedPrompt]:
    """The prompts for chat, or the held-out problems."""
    if options.chat:
        return [AskedPrompt(text=prompt) for prompt in TESTS]
    problems = (
        p for kind in KINDS for p in held_out_problems(kind, options.level, options.count // len(KINDS), seed=0)
    )
    return [AskedPrompt(text=problem.question, answer=problem.answer) for problem in problems]


def main(arguments: Sequence[str]) -> None:
    """Run every engine and print the table."""
    options = make_parser().parse_args(arguments)
    questions = pick_questions(options)
    plain = answer_all(options.plain, questions, options.threads, options.max_tokens)
    print(
        f"{'engine':24} {'same':>7} {'begins':>7} {'tokens/step':>11} {'agreement':>22} {'repetition':>10} {'minus plain':>24} "
        f"{'right':>8} ms/token speed-up"
    )
    figures = print_lines([line(Path(options.plain).name, plain, plain, questions)])
    runs = (
        (Path(root).name, answer_all(root, questions, options.threads, options.max_tokens)) for root in options.engines
    )
    figures += print_lines(line(name, run, plain, questions) for name, run in runs)
    save(options.results, NAME, arguments, figures)


if __name__ == "__main__":
    main(sys.argv[1:])
