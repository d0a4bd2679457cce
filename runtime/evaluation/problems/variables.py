"""Tracking variables through assignments: a number below 100, or a sum or difference of earlier variables or numbers.

Each line of the solution repeats an assignment, looks up its operands by "NAME=", and ends in the form that later lines
look up:

    A:07
    D:A+12
    What is D?

    A:07,A=07
    D:A+12,A=07,07+12,7+2+0=9c0,0+1+0=1c0,D=19
    Answer: D=19.
"""

import random
import string

from enginewright.runtime.evaluation.problems.columns import result_of, write_columns

STEPS = {"standard": (4, 6), "hard": (32, 42)}
PRACTISED = {"standard": 6, "hard": 26}  # the most steps of a problem in training
NAMES = string.ascii_uppercase + "".join(sorted(set(string.ascii_lowercase) - set("bc")))  # b and c mark carries
WIDTH = 2
LIMIT = 10**WIDTH


def variables(rng: random.Random, steps: int) -> tuple[str, str]:
    """Return (question, solution) of `steps` assignments, 1 to 50; names follow the alphabet from a random letter on."""
    first = rng.randrange(len(NAMES))
    values: dict[str, int] = {}
    told, lines = [], []
    for name in (NAMES[(first + step) % len(NAMES)] for step in range(steps)):
        expression, found, values[name] = _assignment(rng, values)
        told.append(f"{name}:{expression}")
        lines.append(",".join([told[-1], *found, f"{name}={values[name]:0{WIDTH}}"]))
    asked = rng.choice(list(values))
    question = "\n".join([*told, f"What is {asked}?"])
    return question, "\n".join([*lines, f"Answer: {asked}={values[asked]:0{WIDTH}}."])


def _assignment(rng: random.Random, known: dict[str, int]) -> tuple[str, list[str], int]:
    """Return (expression in the question, parts of its working, value) of one more variable."""
    if not known or rng.random() < (0.5 if len(known) == 1 else 0.06):
        value = rng.randrange(LIMIT)
        return f"{value:0{WIDTH}}", [], value
    left = rng.choice(list(known))
    others = [name for name in known if name != left]
    if others and rng.random() < 0.7:
        right = rng.choice(others)
        operand, looked_up = known[right], [f"{right}={known[right]:0{WIDTH}}"]
    else:
        operand, looked_up = rng.randrange(1, LIMIT), []
        right = f"{operand:0{WIDTH}}"
    signs = [sign for sign in "+-" if 0 <= result_of(known[left], sign, operand) < LIMIT]
    if not signs:
        return _assignment(rng, known)
    sign = rng.choice(signs)
    a = known[left]
    parts = [f"{left}={a:0{WIDTH}}", *looked_up, f"{a:0{WIDTH}}{sign}{operand:0{WIDTH}}"]
    return f"{left}{sign}{right}", [*parts, write_columns(a, sign, operand, WIDTH)], result_of(a, sign, operand)
