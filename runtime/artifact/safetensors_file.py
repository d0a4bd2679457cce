"""Reads floating point tensors of a safetensors file with numpy alone.

The library safetensors gives numpy no bfloat16, the type of most adapters, unless another library is installed.

Source: the format's description in the README of huggingface/safetensors: eight bytes with the length of a JSON header, the
header, the tensors.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.errors import ArtifactError

MOST_HEADER = 100 << 20  # bytes, the format's own limit
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

Floats = NDArray[np.float32]


def read_floats(path: Path) -> dict[str, Floats]:
    """Return the tensors of the file as float32, by name; those of half and double precision are converted.

    Raises:
        ArtifactError: the file is missing or damaged, or a tensor has no floating point type of 16 to 64 bits.
    """
    try:
        content = path.read_bytes()
    except OSError as e:
        raise ArtifactError(f"{path}: cannot be read ({e.strerror}); expected a safetensors file") from e
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(MOST_HEADER, len(content) - 8):
        raise ArtifactError(f"{path}: not a whole safetensors file; copy or download it again")
    try:
        header = json.loads(content[8 : 8 + size])
        header.pop("__metadata__", None)
        return {name: _tensor(memoryview(content)[8 + size :], spec) for name, spec in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ArtifactError(f"{path}: no safetensors file of floats ({e}); copy or download it again") from e


def _tensor(data: memoryview, spec: dict[str, Any]) -> Floats:
    """One tensor; ValueError where its entry in the header does not fit."""
    kind, (begin, end) = spec["dtype"], spec["data_offsets"]
    shape = [int(size) for size in spec["shape"]]
    if kind not in _WIDTHS or not 0 <= begin <= end <= len(data) or min(shape, default=0) < 0:
        raise ValueError(f"got {kind} at {begin} to {end} of {len(data)} bytes, expected floats within them")
    if end - begin != _WIDTHS[kind] * math.prod(shape):
        raise ValueError(f"got {end - begin} bytes for {kind} {shape}")
    part = data[begin:end]
    if kind == "BF16":
        values = (np.frombuffer(part, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(part, f"<f{_WIDTHS[kind]}").astype(np.float32)
    return values.reshape(shape)
