"""The numbers that decide how tokens are chosen, and their ranges: the same in a request and in an engine's defaults."""

from __future__ import annotations

import math
from collections.abc import Callable

_RANGES: dict[str, tuple[type, Callable[[float], bool], str]] = {
    "temperature": (float, lambda v: v >= 0, "a number from 0 (greedy) up"),
    "top_k": (int, lambda v: v >= 0, "a whole number from 0 (off) up"),
    "top_p": (float, lambda v: 0 < v <= 1, "a number above 0, up to 1 (off)"),
    "min_p": (float, lambda v: 0 <= v <= 1, "a number from 0 (off) to 1"),
    "typical_p": (float, lambda v: 0 < v <= 1, "a number above 0, up to 1 (off)"),
    "epsilon_cutoff": (float, lambda v: 0 <= v < 1, "a number from 0 (off), below 1"),
    "eta_cutoff": (float, lambda v: 0 <= v < 1, "a number from 0 (off), below 1"),
    "repetition_penalty": (float, lambda v: v > 0, "a number above 0; 1 is off"),
    "presence_penalty": (float, lambda v: True, "a finite number"),
    "frequency_penalty": (float, lambda v: True, "a finite number"),
    "vector_scale": (float, lambda v: True, "a finite number"),
    "adapter_scale": (float, lambda v: True, "a finite number"),
    "seed": (int, lambda v: 0 <= v < 2**64, "None or a whole number from 0 to 2**64 - 1"),
    "max_tokens": (int, lambda v: v >= 1, "None or a whole number from 1 up"),
    "max_length": (int, lambda v: v >= 1, "None or a whole number from 1 up"),
    "logprobs": (int, lambda v: 0 <= v <= 1000, "None or a whole number from 0 to 1000"),
}


def expected_instead(name: str, value: object) -> str | None:
    """Return what is expected of the number `name` where `value` is not that; None where it is, and for other names."""
    if name not in _RANGES:
        return None
    kind, holds, expected = _RANGES[name]
    return None if is_number(value, kind) and holds(value) else expected  # type: ignore[arg-type] # it is a number


def is_number(value: object, kind: type) -> bool:
    """Whether `value` is a finite number; a whole one where `kind` is int."""
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        return False
    return isinstance(value, int) or math.isfinite(value)  # of an int beyond every float isfinite cannot say
