"""The conditions of a loaded engine: adds and drops entries between two steps, and gives requests what they choose."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.adapters.read_adapter import read_adapter
from enginewright.runtime.artifact.decoder_graph import condition_tensor
from enginewright.runtime.artifact.files.real_path import real_path
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.artifact.vector_files import read_vectors
from enginewright.runtime.backends.conditions import entry_values
from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.condition_entries import ConditionEntries
from enginewright.runtime.requests.request import Request
from enginewright.runtime.requests.sampling import Sampling
from enginewright.runtime.scheduling.step_loop import StepLoop


class ConditionStore:
    """Keeps the entries and writes their values into the session; created by the LLM, for any thread."""

    def __init__(self, manifest: Manifest, loop: StepLoop) -> None:
        self._manifest = manifest
        self._loop = loop
        self.entries = ConditionEntries(manifest.conditions)

    def add(self, condition: str, entry: str, values: Mapping[str, NDArray[Any]]) -> None:
        """Add or replace an entry, all of its tensors or none; see `LLM.add_condition`.

        Raises:
            RequestError: the engine has no such condition or no room for another entry, or the arrays are others.
        """
        tensors = self._manifest.conditions[self._known("add_condition", condition)].tensors
        if not isinstance(entry, str) or not entry:
            raise RequestError(f"add_condition: {condition}: got the name {entry!r}, expected text that is not empty")
        if values.keys() != tensors.keys():
            got = ", ".join(values) or "none"
            raise RequestError(f"add_condition: {condition}: got the arrays {got}, expected {', '.join(tensors)}")
        ports = {condition_tensor(condition, tensor): np.asarray(array) for tensor, array in values.items()}
        checked = {port: entry_values(self._manifest, port, 1, array) for port, array in ports.items()}

        def fill(number: int) -> None:
            for port, array in checked.items():
                self._loop.session.fill(port, number, array)

        self._loop.between_steps(lambda: self.entries.write(condition, entry, fill))

    def drop(self, condition: str, entry: str) -> None:
        """Forget an entry; see `LLM.drop_condition`.

        Raises:
            RequestError: the engine has no such condition or entry, or a request that has not ended uses it.
        """
        self._known("drop_condition", condition)
        self._loop.between_steps(lambda: self.entries.drop(condition, entry))

    def load_vector(self, path: Path, name: str | None) -> str:
        """Add the vectors of a folder as an entry, and return its name; see `LLM.load_vector`.

        Raises:
            RequestError: the engine adds no vectors, or has no room for another.
            ArtifactError: the folder's vectors are damaged, or do not fit the engine.
        """
        condition = self.entries.of_kind("vector", "load_vector")
        task, values = read_vectors(path, self._manifest.conditions[condition])
        self.add(condition, task if name is None else name, {"vectors": values})
        return task if name is None else name

    def load_adapter(self, path: Path, name: str | None) -> str:
        """Add the adapter of a folder as an entry, and return its name; see `LLM.load_adapter`.

        Raises:
            RequestError: the engine adds no adapters, or has no room for another.
            ArtifactError: the folder's files are damaged, or do not fit the engine.
            UnsupportedError: the adapter is more than factors of linear layers.
        """
        condition = self.entries.of_kind("adapter", "load_adapter")
        entry = real_path(path).name if name is None else name
        self.add(condition, entry, read_adapter(path, self._manifest.conditions[condition]))
        return entry

    def apply(self, sampling: Sampling, request: Request) -> None:
        """Give `request` what `sampling` chooses; RequestError where the engine does not have it."""
        if choices := self.entries.choices(sampling):
            self.entries.apply(choices, request)

    def _known(self, where: str, condition: str) -> str:
        if condition not in self._manifest.conditions:
            known = ", ".join(self._manifest.conditions) or "none"
            raise RequestError(f"{where}: got {condition!r}, and the engine has the conditions {known}")
        return condition
