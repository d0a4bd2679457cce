"""Tells what became of the codes of a quantised checkpoint, which `Manifest.weights` records under "codes"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CODES = "codes"


def codes_lines(weights: Mapping[str, Any]) -> list[str]:
    """Return a line for each type of codes that the checkpoint has: how they are held, or why they are numbers.

    weights: of a manifest. Entries that another version has written in another form are left out.
    """
    entries = weights.get(CODES)
    return [_line(entry) for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _line(entry: dict[str, Any]) -> str:
    count = entry.get("matrices", "?")
    matrices = f"{count} {'matrix' if count == 1 else 'matrices'} in {entry.get('type', '?')}"
    if "kept" in entry:
        return f"{matrices}: codes kept, {entry['kept']}"
    return f"{matrices}: codes not kept: {entry.get('restored', '?')}"
