"""The interface of a backend."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.session import Session
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.tile_tables import TileTables


class Backend(Protocol):
    """Opens sessions on one kind of device."""

    def free_bytes(self, manifest: Manifest) -> int:
        """Bytes that are free for a cache beside the engine's weights."""
        ...

    def open(self, root: Path, manifest: Manifest, tables: TileTables, capacity: Capacity) -> Session:
        """Open the engine; MemoryError where its cache finds no place."""
        ...


def weight_bytes(manifest: Manifest) -> int:
    """Bytes of the decoder graph's files."""
    return sum(file.size for file in manifest.graphs["decoder"].files)
