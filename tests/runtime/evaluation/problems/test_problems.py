"""Tests of generated problems: right by an independent reading of the question, repeatable, never shared with training."""

import itertools
import random
import re

import pytest

from enginewright.runtime.evaluation.problems import (
    KINDS,
    LEVELS,
    Problem,
    answer_of,
    held_out_problems,
    problem_of_size,
    sizes_of,
    training_problems,
)

EVERY = [(kind, level) for kind in KINDS for level in LEVELS]


def solve_arithmetic(question: str) -> str:
    """Apply the operations found in a question, in order."""
    first, *operations = re.findall(r"([-+*]?) ?(\d+)", question)
    value = int(first[1])
    for sign, operand in operations:
        value = {"+": value + int(operand), "-": value - int(operand), "*": value * int(operand)}[sign]
    return str(value)


def solve_variables(question: str) -> str:
    """Let Python run the assignments."""
    *assignments, asked = question.splitlines()
    names: dict[str, int] = {}
    for assignment in assignments:
        name, expression = assignment.split(":")
        names[name] = eval(re.sub(r"\b0(?=\d)", "", expression), {}, names)
    asked = asked.removeprefix("What is ").removesuffix("?")
    return f"{asked}={names[asked]:02}"


def solve_lists(question: str) -> str:
    """Change one Python list in place."""
    start, told = re.fullmatch(r"List: ([\d ]+)\. (.*)", question).groups()  # type: ignore[union-attr]
    items = start.split()
    for operation in re.split(r" ?[A-Z]:", told)[1:]:
        name, *operands = operation.split()
        if name == "reverse":
            items.reverse()
        elif name == "left":
            items.append(items.pop(0))
        elif name == "right":
            items.insert(0, items.pop())
        elif name == "swap":
            i, j = (int(operand) - 1 for operand in operands)
            items[i], items[j] = items[j], items[i]
        elif name == "remove":
            items.pop(int(operands[0]) - 1)
        else:
            assert name == "append"
            items.append(operands[0])
    return " ".join(items)


def solve_retrieval(question: str) -> str:
    """Follow each key asked for until a number."""
    *entries, told = question.splitlines()
    table = dict(entry.split("=") for entry in entries)
    assert len(table) == len(entries), "a key comes twice"
    answers = []
    for label, key in re.findall(r"([A-Z]):(\w+)", told):
        while not key.isdigit():
            key = table[key]
        answers.append(f"{label}={key}")
    return " ".join(answers)


SOLVERS = {
    "arithmetic": solve_arithmetic,
    "variables": solve_variables,
    "lists": solve_lists,
    "retrieval": solve_retrieval,
}


@pytest.mark.parametrize(("kind", "level"), EVERY)
def test_answers_are_right(kind: str, level: str) -> None:
    for problem in held_out_problems(kind, level, 40, seed=3):
        assert problem.answer == SOLVERS[kind](problem.question)
        assert problem.solution.endswith(f"\nAnswer: {problem.answer}.")
        assert (problem.kind, problem.level) == (kind, level)


def test_answers_of_training_problems_are_right() -> None:
    for problem in itertools.islice(training_problems(0), 400):
        assert problem.answer == SOLVERS[problem.kind](problem.question), problem


@pytest.mark.parametrize("kind", ["arithmetic", "variables"])
def test_every_column_of_the_working_is_right(kind: str) -> None:
    for problem in held_out_problems(kind, "hard", 10, seed=0):
        for x, sign, y, then, carry, digit, mark, out in re.findall(
            r"(\d)([-+*])(\d)([-+])(\d)=(\d)([bc])(\d)", problem.solution
        ):
            total = eval(f"{x}{sign}{y}{then}{carry}")
            assert total == int(digit) + 10 * int(out) * (-1 if mark == "b" else 1)


@pytest.mark.parametrize(("kind", "level"), EVERY)
def test_the_same_seed_gives_the_same_problems(kind: str, level: str) -> None:
    problems = held_out_problems(kind, level, 12, seed=5)
    assert problems == held_out_problems(kind, level, 12, seed=5)
    assert problems[:5] == held_out_problems(kind, level, 5, seed=5)
    assert problems != held_out_problems(kind, level, 12, seed=6)


def test_training_repeats_by_seed() -> None:
    first, again, other = (list(itertools.islice(training_problems(seed), 30)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("kind", "level"), EVERY)
def test_held_out_problems_are_distinct_and_held_out(kind: str, level: str) -> None:
    problems = held_out_problems(kind, level, 100, seed=0)
    assert len({problem.question for problem in problems}) == 100
    assert all(problem.held_out for problem in problems)


def test_training_leaves_held_out_problems_alone() -> None:
    seen = list(itertools.islice(training_problems(0), 2000))
    assert not any(problem.held_out for problem in seen)
    assert {problem.kind for problem in seen} == set(KINDS)


def test_hard_problems_go_beyond_what_is_practised() -> None:
    seen = list(itertools.islice(training_problems(0), 2000))
    assert max(len(p.solution.splitlines()) - 1 for p in seen if p.kind == "variables") == 26
    assert min(len(p.solution.splitlines()) - 1 for p in held_out_problems("variables", "hard", 40, seed=0)) >= 32
    for problems, longest in ((seen, 3), (held_out_problems("retrieval", "hard", 40, seed=0), 5)):
        lines = [line for p in problems if p.kind == "retrieval" for line in p.solution.splitlines()[:-1]]
        assert max(line.count("=") for line in lines) == longest + 1  # each entry of a path, then the answer


@pytest.mark.parametrize(("kind", "level"), EVERY)
def test_sizes_stay_within_bounds(kind: str, level: str) -> None:
    least, most = sizes_of(kind, level)
    for problem in held_out_problems(kind, level, 40, seed=1):
        assert least + 1 <= len(problem.solution.splitlines()) <= most + 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_size_up_to_the_largest_can_be_made(kind: str) -> None:
    rng = random.Random(0)
    for steps in range(1, sizes_of(kind, "hard")[1] + 1):
        problem = problem_of_size(kind, steps, rng)
        assert problem.answer == SOLVERS[kind](problem.question)


def test_an_answer_is_what_follows_the_last_mark() -> None:
    problem = Problem(kind="arithmetic", level="standard", question="?", solution="Answer: 1.\nAnswer: 23.")
    assert problem.answer == "23"
    assert answer_of("no mark at all") == "no mark at all"


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="expected one of arithmetic, variables, lists, retrieval"):
        held_out_problems("algebra", "hard", 1, seed=0)
    with pytest.raises(ValueError, match="expected one of standard, hard"):
        held_out_problems("lists", "easy", 1, seed=0)
