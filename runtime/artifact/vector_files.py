"""Reads vectors of layers from a folder on disk, as `enginewright tune` writes them, for the engine that is to add them.

vectors.safetensors   float32, each [d]: `dfv.<layer>`, to be added to the output of the layer's attention; `fv`, to be added to
                      the residual stream after the layer that task.json names; `direction.<layer>`, the same after any layer
task.json             format, task (a name), model.name and model.sha256 (of its weights; empty: unknown), layer (of `fv`)

Every number of layers counts from 0. Others keys of task.json are provenance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from enginewright.runtime.artifact.files.json_file import read_json
from enginewright.runtime.artifact.manifest import Condition
from enginewright.runtime.artifact.safetensors_file import Floats, read_floats
from enginewright.runtime.errors import ArtifactError

VECTORS, TASK = "vectors.safetensors", "task.json"
FORMAT = 1
PREFIXES = {"heads": "dfv.", "stream": "direction."}
"""Where vectors are added -> the beginning of their names, before the layer's number."""
WHOLE = "fv"
"""The name of the vector for the residual stream after the layer that task.json names."""
OTHERWISE = {"heads": "at=stream", "stream": "at=heads"}
_MOST = 1 << 26  # numbers of a file: also the vectors of layers to which the engine adds none


def read_vectors(folder: Path, condition: Condition) -> tuple[str, Floats]:
    """Return the name of the vectors in `folder`, and their values for `condition`, [n, d]; zeros where a layer has none.

    Raises:
        ArtifactError: a file is missing or damaged, or the vectors are of another model, of another size, of layers to which
            the engine adds none, or not finite.
    """
    assert condition.vectors is not None
    task = _read_task(folder / TASK)
    model, expected = task["model"], condition.vectors.model
    if model["sha256"] and expected and model["sha256"] != expected:
        raise ArtifactError(
            f"{folder}: got vectors made on {model['name']} ({model['sha256'][:12]}), expected vectors of the engine's model "
            f"({expected[:12]}): the weights differ; make them on the same checkpoint, with the same methods that change weights"
        )
    wanted = condition.vectors
    found = _by_layer(folder, read_floats(folder / VECTORS, _MOST), task, wanted.at)
    if missing := sorted(found.keys() - set(wanted.layers)):
        raise ArtifactError(
            f"{folder}: got a vector for layer {missing[0]}, expected layers among {_ranges(wanted.layers)}, to which the "
            "engine adds vectors; build it with layers=all"
        )
    values = np.zeros(condition.tensors["vectors"].shape, np.float32)
    for layer, vector in found.items():
        if vector.shape != values.shape[1:]:
            raise ArtifactError(
                f"{folder}: layer {layer}: got a vector of shape {list(vector.shape)}, expected {list(values.shape[1:])}, the "
                "size of the model's states"
            )
        if not np.isfinite(vector).all():
            raise ArtifactError(f"{folder}: layer {layer}: got values that are not finite, expected numbers")
        values[wanted.layers.index(layer)] = vector
    return str(task["task"]), values


def _read_task(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ArtifactError(f"{path}: not found; pass a folder with {VECTORS} and {TASK}")
    task = read_json(path, ArtifactError, "make the vectors again")
    kinds: dict[str, type | tuple[type, ...]] = {"format": int, "task": str, "model": dict, "layer": (int, type(None))}
    for name, kind in kinds.items():
        if not isinstance(task, dict) or not isinstance(task.get(name), kind) or isinstance(task.get(name), bool):
            raise ArtifactError(f"{path}: {name}: got no such value, expected those of {TASK}; make the vectors again")
    if task["format"] != FORMAT:
        raise ArtifactError(f"{path}: got format {task['format']}, expected {FORMAT}; make the vectors again")
    if not all(isinstance(task["model"].get(name), str) for name in ("name", "sha256")):
        raise ArtifactError(f"{path}: model: got {task['model']!r}, expected name and sha256; make the vectors again")
    return dict(task)


def _by_layer(folder: Path, tensors: dict[str, Floats], task: dict[str, Any], at: str) -> dict[int, Floats]:
    """The vectors for `at`, by layer.

    Raises:
        ArtifactError: there is none.
    """
    prefix = PREFIXES[at]
    found = {int(name.removeprefix(prefix)): tensors[name] for name in tensors if _is_of_layer(name, prefix)}
    if at == "stream" and not found and WHOLE in tensors and task["layer"] is not None:
        found = {task["layer"]: tensors[WHOLE]}
    if not found:
        raise ArtifactError(
            f"{folder}: got the tensors {', '.join(tensors) or 'none'}, expected {prefix}<layer>"
            f"{f' or {WHOLE}' if at == 'stream' else ''}, which an engine with at={at} adds; build it with {OTHERWISE[at]}"
        )
    return found


def _is_of_layer(name: str, prefix: str) -> bool:
    number = name.removeprefix(prefix)
    return name.startswith(prefix) and number.isascii() and number.isdigit()


def _ranges(layers: tuple[int, ...]) -> str:
    is_whole = layers == tuple(range(layers[0], layers[-1] + 1)) and len(layers) > 1
    return f"{layers[0]} to {layers[-1]}" if is_whole else ", ".join(map(str, layers))
