"""Suites and tasks: the kinds of problems in each suite, and the problems that a seed picks."""

from __future__ import annotations

from dataclasses import dataclass

from enginewright.runtime.errors import RequestError
from enginewright.runtime.evaluation.problems import KINDS, LEVELS, Problem, held_out_problems

DEFAULT_LIMIT = 200


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite of problems.

    kinds: the kinds of its problems.
    asked: whether engines answer the problems; otherwise they score the worked solutions.
    """

    kinds: tuple[str, ...]
    asked: bool = True


SUITES = {
    "reasoning": Suite(kinds=tuple(kind for kind in KINDS if kind != "retrieval")),
    "retrieval": Suite(kinds=("retrieval",)),
    "perplexity": Suite(kinds=tuple(KINDS), asked=False),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """The parameters of one evaluation; created by the command from its options, which have the same names.

    suite: name of the suite.
    level: how hard the problems are, "standard" or "hard".
    limit: number of problems, or of windows of a data file; None: 200 problems, or all windows.
    seed: seed of the problems and of the intervals.
    data: a file to score instead of the worked solutions.
    window: number of tokens of the file that are scored at a time; None: as many as every engine's context holds.
    threads, max_batch, backend: as in `load`, for every engine.

    Raises:
        RequestError: a parameter is unknown or out of range.
    """

    suite: str
    level: str = "standard"
    limit: int | None = None
    seed: int = 0
    data: str | None = None
    window: int | None = None
    threads: int | None = None
    max_batch: int | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("suite", self.suite, SUITES), ("level", self.level, LEVELS)):
            if value not in known:
                raise RequestError(f"--{name}: got {value!r}, expected one of {', '.join(known)}")
        smallest = {"limit": 1, "seed": 0, "window": 2, "threads": 1, "max_batch": 1}
        for name, least in smallest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise RequestError(f"--{name.replace('_', '-')}: got {value}, expected {least} or more")
        if self.data is not None and self.suite != "perplexity":
            raise RequestError(f"--data: got a file for the suite {self.suite}, expected it with --suite perplexity")
        if self.window is not None and self.data is None:
            raise RequestError("--window: got no --data, expected a file whose text is scored in windows")

    @property
    def asked(self) -> bool:
        """Whether engines answer problems; otherwise they score texts."""
        return SUITES[self.suite].asked


def pick_problems(task: Task) -> list[Problem]:
    """Return the held-out problems of the task, shared out evenly among the kinds of its suite, up to the limit."""
    kinds = SUITES[task.suite].kinds
    limit = DEFAULT_LIMIT if task.limit is None else task.limit
    problems: list[Problem] = []
    for place, kind in enumerate(kinds):
        count = (limit - place + len(kinds) - 1) // len(kinds)
        if count > 0:
            problems += held_out_problems(kind, task.level, count, task.seed)
    return problems
