"""Reads floating point tensors of a safetensors file with numpy alone.

The library safetensors gives numpy no bfloat16, the type of most adapters, unless another library is installed.

Source: the format's description in the README of huggingface/safetensors: eight bytes with the length of a JSON header, the
header, the tensors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.files.bounded_file import read_bounded
from enginewright.runtime.artifact.files.json_file import parse_json
from enginewright.runtime.errors import ArtifactError

MOST_HEADER = 100 << 20  # bytes, the format's own limit
_MEND = "copy or download it again"
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

Floats = NDArray[np.float32]


def read_floats(path: Path, numbers: int) -> dict[str, Floats]:
    """Return the tensors of the file as float32, by name; those of half and double precision are converted.

    numbers: the most that the caller has a use for; a larger file is not read.

    Raises:
        ArtifactError: the file is missing, too large or damaged, or a tensor has no floating point type of 16 to 64 bits.
    """
    most = MOST_HEADER + numbers * max(_WIDTHS.values())
    content = read_bounded(path, most, ArtifactError, "expected a safetensors file of this engine's model")
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(MOST_HEADER, len(content) - 8):
        raise ArtifactError(f"{path}: not a whole safetensors file; {_MEND}")
    try:
        header = parse_json(content[8 : 8 + size], path, ArtifactError, _MEND, most=MOST_HEADER)
        header.pop("__metadata__", None)
        return {name: _tensor(memoryview(content)[8 + size :], spec) for name, spec in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as e:
        raise ArtifactError(f"{path}: no safetensors file of floats ({e}); {_MEND}") from e


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
