"""llama.cpp's control vectors: a GGUF file with a tensor `direction.N` [d] for the residual stream after layer N, from 0.

There is none for layer 0. llama.cpp reads nothing else of the file: no key says which weights the vectors were made on.

Source: https://github.com/ggml-org/llama.cpp, common/common.cpp and src/llama-adapter.cpp.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from enginewright.exporters.source.formats.gguf.header import FileTensor, read_header
from enginewright.exporters.source.formats.gguf.tensor_types import type_name
from enginewright.runtime.artifact.manifest import Condition
from enginewright.runtime.errors import ExportError

HINT = "controlvector.model_hint"


def read_directions(path: Path) -> tuple[dict[int, NDArray[np.float32]], str]:
    """Return the vectors of a file by layer, and the model that it names, which may be empty.

    Raises:
        ExportError: no GGUF file, no direction in it, or one that is not a finite float32 vector of the same size as others.
    """
    header = read_header(path)
    found: dict[int, NDArray[np.float32]] = {}
    for name, tensor in header.tensors.items():
        match = re.fullmatch(r"direction\.([1-9][0-9]*)", name)
        if match is None:
            raise ExportError(
                f"{path}: got the tensor {name!r}, expected direction.1, direction.2, ... alone; pass a file of control vectors"
            )
        found[int(match[1])] = _read(path, tensor)
    if not found:
        raise ExportError(
            f"{path}: got no tensor, expected direction.1, direction.2, ...; pass a file of control vectors"
        )
    if len(sizes := {len(vector) for vector in found.values()}) > 1:
        raise ExportError(f"{path}: got vectors of {' and '.join(map(str, sorted(sizes)))} numbers, expected one size")
    hint = header.get(HINT, "")
    return dict(sorted(found.items())), hint if isinstance(hint, str) else ""


def read_control_vectors(path: Path, condition: Condition) -> tuple[str, NDArray[np.float32]]:
    """Return the name of a file's vectors and their values for `condition`, [n, d]; zeros where a layer has none.

    Raises:
        ExportError: the file cannot be read, or its vectors do not fit the engine.
    """
    assert condition.vectors is not None
    wanted = condition.vectors
    if wanted.at != "stream":
        raise ExportError(
            f"{path}: got control vectors, which are for the residual stream, with at={wanted.at}; build with at=stream"
        )
    directions, _ = read_directions(path)
    values = np.zeros(condition.tensors["vectors"].shape, np.float32)
    for layer, vector in directions.items():
        if layer not in wanted.layers:
            raise ExportError(
                f"{path}: got a vector for layer {layer}, to which the engine adds none; build with layers=all"
            )
        if len(vector) != values.shape[1]:
            raise ExportError(
                f"{path}: got vectors of {len(vector)} numbers, expected {values.shape[1]} as the model's states"
            )
        values[wanted.layers.index(layer)] = vector
    return path.stem, values


def _read(path: Path, tensor: FileTensor) -> NDArray[np.float32]:
    if len(tensor.shape) != 1 or type_name(tensor.kind) != "F32":
        raise ExportError(
            f"{path}: {tensor.name}: got {type_name(tensor.kind)} of shape {list(tensor.shape)}, expected F32 with one axis"
        )
    with path.open("rb") as file:
        file.seek(tensor.begin)
        vector: NDArray[np.float32] = np.frombuffer(file.read(tensor.size), "<f4")
    if not np.isfinite(vector).all():
        raise ExportError(f"{path}: {tensor.name}: got values that are not finite, expected numbers")
    return vector
