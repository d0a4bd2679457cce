"""The bits that codes had before an export widened them, as the record of an exported checkpoint has them.

Servers take codes of 4 or 8 bits alone, so exported checkpoints hold no others. Engines have a form for 2 bits, and read of
this record which codes fit into it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from enginewright.exporters.source.json_file import read_json
from enginewright.exporters.source.quantized.stored_parts import ModuleParts
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.errors import ExportError

RECORD = "enginewright.json"
"""The file that an export leaves: what made the checkpoint."""
CODE_BITS = "code_bits"
"""The record's key for {module: bits of its codes}, of those that are stored in more."""


def read_code_bits(path: Path) -> dict[str, int]:
    """Return {module: bits} of the checkpoint directory `path`; empty where it has no such record.

    Raises:
        ExportError: the record is damaged.
    """
    if not (path / RECORD).is_file():
        return {}
    found = read_json(path / RECORD).get(CODE_BITS, {})
    if not isinstance(found, dict) or not all(bits in range(2, 8) for bits in found.values()):
        raise ExportError(
            f"{path / RECORD}: {CODE_BITS}: got {found!r}, expected a number from 2 to 7 for each module; export the checkpoint "
            "again, or take the file out"
        )
    return found


def narrow(parts: ModuleParts, rows: QuantizedRows) -> QuantizedRows:
    """Return `rows` as codes of `parts.code_bits`, where these are fewer; each is checked when it is loaded."""
    bits, zero_points = parts.code_bits, rows.zero_points
    if not bits or bits >= rows.bits:
        return rows

    def load() -> tuple[np.ndarray, np.ndarray]:
        codes, scales = rows.load()
        return _check(parts, codes), scales

    return dataclasses.replace(
        rows, bits=bits, load=load, zero_points=None if zero_points is None else lambda: _check(parts, zero_points())
    )


def _check(parts: ModuleParts, codes: np.ndarray) -> np.ndarray:
    bound = 1 << (parts.code_bits - 1)
    if codes.size and not -bound <= int(codes.min()) <= int(codes.max()) < bound:
        raise ExportError(
            f"{parts.source.path / RECORD}: {CODE_BITS}: got {parts.code_bits} for {parts.module!r}, whose codes need more; "
            "take the file out, it belongs to another checkpoint"
        )
    return codes
