"""The interface of a backend, which opens engines on one kind of device."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.session import Session
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.tile_tables import TileTables


class Backend(Protocol):
    """Opens engines on one kind of device; created by `choose_backend`."""

    def free_bytes(self, manifest: Manifest) -> int:
        """Return the bytes of the device's memory that the engine's weights leave for a cache."""
        ...

    def open(self, root: Path, manifest: Manifest, tables: TileTables, capacity: Capacity) -> Session:
        """Open the engine at `root`.

        Raises:
            MemoryError: there is no room for its cache.
        """
        ...


def weight_bytes(manifest: Manifest) -> int:
    """Return the bytes of the decoder graph's files, nearly all of which are weights."""
    return sum(file.size for file in manifest.graphs["decoder"].files)
