"""Following keys to numbers, through a long table whose entries are numbers or other keys.

apple=river
stone=48
river=stone
A:apple B:stone. Find each number.

A:apple=river=stone=48,A=48
B:stone=48,B=48
Answer: A=48 B=48.
"""

import random
import string

from enginewright.runtime.evaluation.problems.words import WORDS

STEPS = {"standard": (4, 7), "hard": (8, 14)}  # keys asked for
PRACTISED = {"standard": 7, "hard": 14}  # the most keys of a problem in training
ENTRIES = {"standard": (16, 32), "hard": (200, 240)}
PRACTICE_ENTRIES = (4, 64)  # entries of problems smaller than those of the standard level
LONGEST_PATH = {"standard": 3, "hard": 5}  # entries from a key to its number
PRACTISED_PATH = 3


def retrieval(rng: random.Random, steps: int, *, practice: bool = False) -> tuple[str, str]:
    """Return (question, solution) that asks for `steps` keys, 1 to 26; the table is long at the hard level.

    practice: whether paths are no longer than those in training.
    """
    level = "hard" if steps >= STEPS["hard"][0] else "standard"
    least, most = PRACTICE_ENTRIES if steps < STEPS["standard"][0] else ENTRIES[level]
    longest = PRACTISED_PATH if practice else LONGEST_PATH[level]
    words = rng.sample(WORDS, rng.randint(least, most))
    table: dict[str, str] = {}
    while words:
        path = [words.pop() for _ in range(min(len(words), rng.randint(1, longest)))]
        table |= dict(zip(path, [*path[1:], str(rng.randint(10, 99))], strict=True))
    entries = list(table.items())
    rng.shuffle(entries)
    asked = dict(zip(string.ascii_uppercase, rng.sample(list(table), steps), strict=False))
    told = " ".join(f"{label}:{key}" for label, key in asked.items())
    question = "\n".join([*(f"{key}={value}" for key, value in entries), f"{told}. Find each number."])
    paths = {label: follow_path(table, key) for label, key in asked.items()}
    lines = [f"{label}:{'='.join(path)},{label}={path[-1]}" for label, path in paths.items()]
    answer = " ".join(f"{label}={path[-1]}" for label, path in paths.items())
    return question, "\n".join([*lines, f"Answer: {answer}."])


def follow_path(table: dict[str, str], key: str) -> list[str]:
    """Return the path from a key through the table to its number, both included."""
    path = [key]
    while path[-1] in table:
        path.append(table[path[-1]])
    return path
