"""Bounds of the numbers in config.json of which transformers makes lists before any tensor is looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from enginewright.runtime.errors import ExportError

MOST_LAYERS = 10_000
MOST_CONTEXT = 1 << 31  # tokens; positions are counted in 64 bits, tiles in 32
_LAYERS = re.compile(r"(n|num)_(\w+_)?(layers?|blocks?)|(\w+_)?(layers?|depth)")
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "max_seq_len")


def check_numbers(raw: dict[str, Any], where: Path) -> None:
    """Refuse numbers of layers and lengths of contexts that no model has, in the config and in the parts of it.

    Raises:
        ExportError: names the key.
    """
    for key, value in _settings(raw):
        if _LAYERS.fullmatch(key) and not _is_within(value, 0, MOST_LAYERS):
            raise ExportError(f"{where}: {key}: got {_short(value)}, expected a number of layers up to {MOST_LAYERS}")
        if key in _CONTEXTS and not _is_within(value, 1, MOST_CONTEXT):
            raise ExportError(
                f"{where}: {key}: got {_short(value)}, expected a number of tokens from 1 to {MOST_CONTEXT}"
            )


def _settings(raw: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key with its value, those of nested objects too; the reader has bounded the depth."""
    for key, value in raw.items():
        yield key, value
        if isinstance(value, dict):
            yield from _settings(value)


def _is_within(value: Any, least: int, most: int) -> bool:
    """Whether a number is in the range; what is none, such as a list of layers, is left to transformers."""
    return isinstance(value, bool) or not isinstance(value, int | float) or least <= value <= most


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
