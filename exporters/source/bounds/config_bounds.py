"""Bounds of the numbers in config.json of which transformers makes lists before any tensor is looked at."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from enginewright.runtime.artifact.value_ranges import MOST_CONTEXT, MOST_LAYERS
from enginewright.runtime.errors import ExportError

MOST_ITEMS = 1 << 20  # experts, labels, heads
_LAYERS = re.compile(r"(n|num)_(\w+_)?(layers?|blocks?)|depth")
_ITEMS = re.compile(r"(n|num)_(\w+_)?(experts|heads|labels)|num_experts_per_\w+|\w*_head_count")
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "max_seq_len")


def check_numbers(raw: dict[str, Any], where: Path) -> None:
    """Refuse numbers of layers and lengths of contexts that no model has, in the config and in the parts of it.

    Raises:
        ExportError: names the key.
    """
    for key, value in _settings(raw):
        if _LAYERS.fullmatch(key) and _is_beyond(value, MOST_LAYERS):
            raise ExportError(f"{where}: {key}: got {_short(value)}, expected a number of layers up to {MOST_LAYERS}")
        if _ITEMS.fullmatch(key) and _is_beyond(value, MOST_ITEMS):
            raise ExportError(f"{where}: {key}: got {_short(value)}, expected a number up to {MOST_ITEMS}")
        if key in _CONTEXTS and _is_beyond(value, MOST_CONTEXT, least=0):
            raise ExportError(f"{where}: {key}: got {_short(value)}, expected a number of tokens up to {MOST_CONTEXT}")


def _settings(raw: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key with its value, those of nested objects too; the reader has bounded the depth."""
    for key, value in raw.items():
        yield key, value
        if isinstance(value, dict):
            yield from _settings(value)


def _is_beyond(value: Any, most: int, least: float = -math.inf) -> bool:
    """Whether a number is out of range; what is none, such as a list of layers, is left to transformers."""
    return isinstance(value, int | float) and not least <= value <= most


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
