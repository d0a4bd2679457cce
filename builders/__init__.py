"""Engine directory to engines of a backend.

A backend is a module with `build(root, manifest, backend, options) -> Manifest`, found by name.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from enginewright.builders.options import BackendOptions
from enginewright.runtime.artifact import Manifest
from enginewright.runtime.errors import BuildError

BACKENDS = {
    "onnxruntime": "enginewright.builders.onnxruntime",
    "onnxruntime-cuda": "enginewright.builders.onnxruntime_cuda",
    "tensorrt": "enginewright.builders.tensorrt",
    "tensorrt-rtx": "enginewright.builders.tensorrt",
}


class TargetError(BuildError):
    """The graphs are fit for the backend, but this machine cannot build for it: the one that runs them has to."""


def check_backend(name: str, options: BackendOptions | None = None) -> None:
    """Raise BuildError unless `name` is a backend, listing the known ones, and takes the `options` that are set."""
    if name not in BACKENDS:
        raise BuildError(f"--backend: unknown backend {name!r}; known: {', '.join(sorted(BACKENDS))}")
    if options is not None:
        options.check(name)


def build(root: Path, manifest: Manifest, backend: str, options: BackendOptions | None = None) -> Manifest:
    """Build the engine directory's graphs for `backend` and return the manifest that names the engines.

    Raises:
        TargetError: only the machine that runs the engine can build it.
        BuildError: for any other reason; the directory is what it was.
    """
    options = options or BackendOptions()
    check_backend(backend, options)
    built: Manifest = importlib.import_module(BACKENDS[backend]).build(root, manifest, backend, options)
    return built
