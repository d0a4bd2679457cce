"""The number of cases that the tests of tests/fuzz try: few in CI, as many times more as ENGINEWRIGHT_FUZZ says."""

from __future__ import annotations

import os


def rounds(short: int) -> int:
    """Return `short` times the number in the environment variable ENGINEWRIGHT_FUZZ, which is 1 where it is not set."""
    return max(1, round(short * float(os.environ.get("ENGINEWRIGHT_FUZZ", "1"))))
