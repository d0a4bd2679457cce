"""A sequence of operations on a list of different two-digit numbers, the list written out after each one.

    List: 17 42 93 55 68 20. A:reverse B:swap 2 3 C:remove 6 D:append 30
    List: 17 42 93 55 68 20.
    A:reverse,20 68 55 93 42 17
    B:swap 2 3,20 55 68 93 42 17
    C:remove 6,20 55 68 93 42
    D:append 30,20 55 68 93 42 30
    Answer: 20 55 68 93 42 30.

left moves the first item to the end, right the last item to the front. swap exchanges the items at two places, remove takes
out the item at one place; places count from 1.
"""

import random
import string

STEPS = {"standard": (3, 7), "hard": (23, 26)}  # 26 letters name the steps
PRACTISED = {"standard": 7, "hard": 26}  # the most steps of a problem in training
SHORTEST, LONGEST = 5, 6


def lists(rng: random.Random, steps: int) -> tuple[str, str]:
    """Return (question, solution) of `steps` operations, 1 to 26, on a list of 5 or 6 items."""
    items = rng.sample(range(10, 100), rng.randint(SHORTEST, LONGEST))
    start = _join(items)
    told, lines = [], []
    for label in string.ascii_uppercase[:steps]:
        told.append(f"{label}:{_operation(rng, items)}")
        items = apply_operation(told[-1][2:], items)
        lines.append(f"{told[-1]},{_join(items)}")
    return f"List: {start}. {' '.join(told)}", "\n".join([f"List: {start}.", *lines, f"Answer: {_join(items)}."])


def apply_operation(operation: str, items: list[int]) -> list[int]:
    """Return `items` after an operation such as "swap 2 3", as a new list.

    Raises:
        ValueError: the operation is unknown.
    """
    name, *numbers = operation.split()
    operands = [int(number) for number in numbers]
    match name, operands:
        case "reverse", []:
            return items[::-1]
        case "left", []:
            return [*items[1:], items[0]]
        case "right", []:
            return [items[-1], *items[:-1]]
        case "swap", [i, j]:
            places = list(range(len(items)))
            places[i - 1], places[j - 1] = j - 1, i - 1
            return [items[place] for place in places]
        case "remove", [i]:
            return [*items[: i - 1], *items[i:]]
        case "append", [value]:
            return [*items, value]
    raise ValueError(f"apply_operation: got {operation!r}, expected one of reverse, left, right, swap, remove, append")


def _operation(rng: random.Random, items: list[int]) -> str:
    """Return an operation that keeps the items different, and their number within bounds."""
    choices = ["reverse", "left", "right", "swap"] * 2
    choices += ["remove"] * (len(items) > SHORTEST) + ["append"] * (len(items) < LONGEST)
    match rng.choice(choices):
        case "swap":
            i, j = sorted(rng.sample(range(1, len(items) + 1), 2))
            return f"swap {i} {j}"
        case "remove":
            return f"remove {rng.randint(1, len(items))}"
        case "append":
            return f"append {rng.choice([value for value in range(10, 100) if value not in items])}"
        case plain:
            return plain


def _join(items: list[int]) -> str:
    return " ".join(map(str, items))
