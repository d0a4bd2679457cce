"""The kinds of problems, an endless mixture for training, and held-out problems that training never sees."""

import random
from collections.abc import Callable, Iterator
from functools import partial

from enginewright.runtime.evaluation.problems import arithmetic, lists, retrieval, variables
from enginewright.runtime.evaluation.problems.problem import LEVELS, Problem

_Maker = Callable[[random.Random, int], tuple[str, str]]
_MAKERS: dict[str, _Maker] = {
    "arithmetic": arithmetic.arithmetic,
    "variables": variables.variables,
    "lists": lists.lists,
    "retrieval": retrieval.retrieval,
}
_PRACTICE: dict[str, _Maker] = {**_MAKERS, "retrieval": partial(retrieval.retrieval, practice=True)}
_STEPS = {
    "arithmetic": arithmetic.STEPS,
    "variables": variables.STEPS,
    "lists": lists.STEPS,
    "retrieval": retrieval.STEPS,
}
KINDS = tuple(_MAKERS)
_PRACTISED = {
    "arithmetic": arithmetic.PRACTISED,
    "variables": variables.PRACTISED,
    "lists": lists.PRACTISED,
    "retrieval": retrieval.PRACTISED,
}
_TRAINING_WEIGHTS = {"arithmetic": 1, "variables": 1, "lists": 2, "retrieval": 1}  # lists take longest to learn


def sizes_of(kind: str, level: str) -> tuple[int, int]:
    """Return the least and the most steps of a problem of one kind and level; for retrieval, of keys asked for.

    Raises:
        ValueError: an unknown kind or level.
    """
    if kind not in _STEPS:
        raise ValueError(f"problems: got the kind {kind!r}, expected one of {', '.join(KINDS)}")
    if level not in LEVELS:
        raise ValueError(f"problems: got the level {level!r}, expected one of {', '.join(LEVELS)}")
    return _STEPS[kind][level]


def problem_of_size(kind: str, steps: int, rng: random.Random, *, practice: bool = False) -> Problem:
    """Return a problem of `steps` steps; its level is "hard" from the hard level's least size on.

    practice: whether it is made as for training, which changes retrieval alone.

    Raises:
        ValueError: an unknown kind.
    """
    level = "hard" if steps >= sizes_of(kind, "hard")[0] else "standard"
    question, solution = _PRACTICE[kind](rng, steps) if practice else _MAKERS[kind](rng, steps)
    return Problem(kind=kind, level=level, question=question, solution=solution)


def training_problems(seed: int | str, *, hard_share: float = 0.5) -> Iterator[Problem]:
    """Yield problems of all kinds and sizes without end, but no held-out problem.

    A share `hard_share` of them has any size up to the largest that is practised for the hard level, the others any size up
    to the largest for the standard level. Hard problems go beyond what is practised in two kinds: they have more variables,
    and longer paths of keys.
    """
    rng = random.Random(f"training {seed}")
    while True:
        (kind,) = rng.choices(KINDS, [_TRAINING_WEIGHTS[kind] for kind in KINDS])
        largest = _PRACTISED[kind]["hard" if rng.random() < hard_share else "standard"]
        problem = problem_of_size(kind, rng.randint(1, largest), rng, practice=True)
        if not problem.held_out:
            yield problem


def held_out_problems(kind: str, level: str, count: int, seed: int) -> list[Problem]:
    """Return `count` different problems of one kind and level that training never sees.

    A longer list for the same seed begins with the shorter one.

    Raises:
        ValueError: an unknown kind or level.
    """
    least, most = sizes_of(kind, level)
    rng = random.Random(f"held out {kind} {level} {seed}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = problem_of_size(kind, rng.randint(least, most), rng)
        if problem.held_out:
            found.setdefault(problem.question, problem)
    return list(found.values())
