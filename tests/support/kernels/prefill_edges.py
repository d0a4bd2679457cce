"""The sizes of a prefill kernel's blocks, and the lengths around them, where mistakes would show."""

from __future__ import annotations

TYPES = ("float16", "bfloat16")
BLOCK_LANES, BLOCK_TOKENS = 128, 64


def around(number: int) -> tuple[int, int, int]:
    """The number and its two neighbours."""
    return number - 1, number, number + 1
