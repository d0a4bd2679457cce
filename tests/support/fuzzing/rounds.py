"""The number of cases that the tests of tests/fuzz try, and which: few in CI, as many times more as ENGINEWRIGHT_FUZZ says."""

from __future__ import annotations

import os
import random


def rounds(short: int) -> int:
    """Return `short` times the number in the environment variable ENGINEWRIGHT_FUZZ, which is 1 where it is not set."""
    return max(1, round(short * float(os.environ.get("ENGINEWRIGHT_FUZZ", "1"))))


def seed(number: int) -> int:
    """Return a seed of its own for `number`; the whole number in ENGINEWRIGHT_FUZZ_SEED, by default 0, gives other ones."""
    return number + 1_000_000 * int(os.environ.get("ENGINEWRIGHT_FUZZ_SEED", "0"))


def draws(number: int) -> random.Random:
    """Return the random numbers that `seed` gives."""
    return random.Random(seed(number))
