"""The entries of conditions: how much memory they take, and the values that go into them."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.decoder_graph import added_inputs, condition_tensor
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.session import Session
from enginewright.runtime.errors import ArtifactError, RequestError


def condition_bytes(manifest: Manifest) -> int:
    """Return the bytes of the tensors of all conditions, with every entry."""
    return sum(
        math.prod(port.shape({})) * np.dtype(port.dtype).itemsize
        for port in added_inputs(manifest)
        if port.lives == "condition"
    )


def entry_values(manifest: Manifest, port: str, entry: int, values: NDArray[Any]) -> NDArray[Any]:
    """Return `values` in the type of the condition's tensor, contiguous, after checks; the parameters are those of `fill`.

    Raises:
        RequestError: there is no such port or entry, the values have another shape, or they are not finite.
    """
    found = {each.name: each for each in added_inputs(manifest) if each.lives == "condition"}
    if port not in found:
        known = ", ".join(found) or "none"
        raise RequestError(f"fill: port: got {port!r}, expected one of the engine's tensors of conditions: {known}")
    most, *shape = found[port].shape({})
    if not 1 <= entry < most:
        raise RequestError(f"fill: {port}: got entry {entry}, expected 1 to {most - 1}; entry 0 stands for none")
    if values.shape != tuple(shape):
        raise RequestError(f"fill: {port}: got values of shape {list(values.shape)}, expected {shape}")
    with np.errstate(over="ignore"):  # it is refused below
        converted = np.ascontiguousarray(values, found[port].dtype)
    if converted.dtype.kind == "f" and not np.isfinite(converted).all():
        raise RequestError(f"fill: {port}: got values that are not finite as {found[port].dtype}, expected numbers")
    return converted


def fill_entries(root: Path, manifest: Manifest, session: Session) -> None:
    """Write the entries that the engine directory has files for: those of each condition into its entries 1, 2, ...

    Raises:
        ArtifactError: a file is no such archive, or has other arrays than the condition's tensors.
    """
    for name, condition in manifest.conditions.items():
        for entry, (called, file) in enumerate(condition.entries.items(), 1):
            arrays = _read(root / file.path)
            where = f"{root / file.path}: entry {called!r} of the condition {name!r}"
            if arrays.keys() != condition.tensors.keys():
                got, expected = ", ".join(arrays) or "none", ", ".join(condition.tensors)
                raise ArtifactError(f"{where}: got the arrays {got}, expected {expected}; build the engine again")
            for tensor, values in arrays.items():
                port = condition_tensor(name, tensor)
                try:
                    session.fill(port, entry, values)
                except RequestError as e:
                    raise ArtifactError(f"{where}: {e}; build the engine again") from e


def _read(path: Path) -> dict[str, NDArray[Any]]:
    broken = f"{path}: no .npz archive of arrays"
    if not zipfile.is_zipfile(path):
        raise ArtifactError(f"{broken}; build the engine again")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise ArtifactError(f"{broken} ({e}); build the engine again") from e
