"""Ranges of whole numbers that others may have written, checked by the name of their field."""

from __future__ import annotations

import re
from collections.abc import Iterable

MOST_BATCH = 1 << 16
"""The most rows of a step: far beyond what a machine serves, and no table of them is larger than a memory."""
MOST_CONTEXT = 1 << 31
"""The most tokens of a request: their tiles are numbered in 32 bits."""
MOST_WIDTH = 1 << 24
"""The largest vocabulary, and the most numbers of a token's state."""
MOST_BYTES = 1 << 62
MOST_LAYERS, MOST_HEADS = 10_000, 1 << 16
MOST_ENTRIES = 1 << 20
"""The most entries of a condition."""
MOST_NUMBERS = 1 << 32
"""The most numbers of one entry's tensor."""
MOST_TOKENS = 1 << 10
"""The most tokens that a row brings into a step."""


def check_ranges(record: object, **ranges: tuple[int, int]) -> None:
    """Raise ValueError for the first field of `record` that is no whole number in its range, both ends included.

    Of a field that is a tuple, each item has to be one.
    """
    for name, (least, most) in ranges.items():
        value = getattr(record, name)
        for each in value if isinstance(value, tuple) else (value,):
            if type(each) is not int or not least <= each <= most:
                raise ValueError(f"{name}: got {_short(each)}, expected a whole number from {least} to {most}")


def check_filled(record: object, *names: str) -> None:
    """Raise ValueError for the first of these fields of `record` that is empty."""
    for name in names:
        if not getattr(record, name):
            raise ValueError(f"{name}: got none, expected one or more")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def check_names(where: str, names: Iterable[str]) -> None:
    """Raise ValueError where a name cannot be a part of a port's name, whose parts are separated by dots."""
    if wrong := [name for name in names if not re.fullmatch(r"[A-Za-z0-9_-]+", name)]:
        raise ValueError(f"{where}: got the name {wrong[0]!r}, expected letters, digits, _ and - alone")
