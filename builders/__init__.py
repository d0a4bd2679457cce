"""Engine directory to engines of a backend.

A backend is a module with `build(root, manifest) -> Manifest`, found by name.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from enginewright.runtime.artifact import Manifest
from enginewright.runtime.errors import BuildError

BACKENDS = {
    "onnxruntime": "enginewright.builders.onnxruntime",
    "onnxruntime-cuda": "enginewright.builders.onnxruntime_cuda",
}


def check_backend(name: str) -> None:
    """Raise BuildError, listing the known backends, unless `name` is one."""
    if name not in BACKENDS:
        raise BuildError(f"--backend: unknown backend {name!r}; known: {', '.join(sorted(BACKENDS))}")


def build(root: Path, manifest: Manifest, backend: str) -> Manifest:
    """Build the engine directory's graphs for `backend` and return the manifest that names the engines."""
    check_backend(backend)
    built: Manifest = importlib.import_module(BACKENDS[backend]).build(root, manifest)
    return built
