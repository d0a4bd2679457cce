"""A chain of operations on one number below 1000, every step worked out digit by digit.

The question names each step by a letter, so that a reader finds the next operation by its letter, without counting:

    Start with 47. A:+385 B:-17. What is the result?
    A:+385,047+385,7+5+0=2c1,4+8+1=3c1,0+3+1=4c0,432
    B:-17,432-017,2-7-0=5b1,3-1-1=1b0,4-0-0=4b0,415
    Answer: 415.
"""

import random
import string

from enginewright.runtime.evaluation.problems.columns import result_of, write_columns

STEPS = {"standard": (2, 5), "hard": (12, 22)}
PRACTISED = {"standard": 5, "hard": 22}  # the most steps of a problem in training
WIDTH = 3
LIMIT = 10**WIDTH
LARGEST_FACTOR = 5  # a small model takes long to learn the tables of 6 to 9, and they would not test a cache any better


def arithmetic(rng: random.Random, steps: int) -> tuple[str, str]:
    """Return (question, solution) of a chain of `steps` operations, 1 to 26; one or two may be asked as a formula."""
    plain = steps <= 2 and rng.random() < 0.5
    start = value = _number(rng, LIMIT - 1)
    told, lines = [], []
    for label in string.ascii_uppercase[:steps]:
        sign, operand = _operation(rng, value, allow_product=not plain or steps == 1)
        result = result_of(value, sign, operand)
        right = str(operand) if sign == "*" else f"{operand:0{WIDTH}}"
        told.append(f"{label}:{sign}{operand}")
        lines.append(
            f"{told[-1]},{value:0{WIDTH}}{sign}{right},{write_columns(value, sign, operand, WIDTH)},{result:0{WIDTH}}"
        )
        value = result
    if plain:
        formula = " ".join([str(start), *(f"{step[2]} {step[3:]}" for step in told)])
        question = rng.choice((f"What is {formula}?", f"What is {formula}?", f"Compute {formula}.", f"{formula} = ?"))
    else:
        question = f"Start with {start}. {' '.join(told)}. What is the result?"
    return question, "\n".join([*lines, f"Answer: {value}."])


def _number(rng: random.Random, largest: int) -> int:
    """Return a number from 1 to `largest`; numbers of up to 1, 2 and 3 digits come as 1 : 2 : 3."""
    digits = rng.choices((1, 2, 3), (1, 2, 3))[0]
    return rng.randint(1, max(1, min(largest, 10**digits - 1)))


def _operation(rng: random.Random, value: int, *, allow_product: bool) -> tuple[str, int]:
    """Return a sign and an operand that keep the value in 0 to 999."""
    choices: list[str] = ["+"] * (value < LIMIT - 1) + ["-"] * (value > 0)
    if allow_product and 0 < value < LIMIT // 2:
        choices.append("*")
    sign = rng.choice(choices)
    if sign == "*":
        return sign, rng.randint(2, min(LARGEST_FACTOR, (LIMIT - 1) // value))
    return sign, _number(rng, LIMIT - 1 - value if sign == "+" else value)
