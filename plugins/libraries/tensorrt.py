"""TensorRT's module names, and the plugin library for TensorRT. Standard library only."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from enginewright.plugins.libraries.locate import TENSORRT_LIBRARY, LibraryError, library_path
from enginewright.plugins.ops.registry import GPU_OPS

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Backend, as command lines and manifests call it -> the Python module that builds and runs its engines."""
EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
"""Backend -> the optional dependency of this package that installs its module."""

_BUILD_AGAIN = "build or install the library again, from the same version as this package"


@dataclass(frozen=True, kw_only=True)
class TensorRTLibrary:
    """The loaded `libenginewright_trt`; created by `load_tensorrt_library`.

    path: the library's file, as TensorRT's plugin registry takes it.
    version: version of the package that the library was built from.
    op_versions: name -> version of each op that the library has a plugin for.
    """

    path: Path
    version: str
    op_versions: Mapping[str, int]

    def check_versions(self, needed: Mapping[str, int]) -> None:
        """Check that the library has these ops in these versions.

        Raises:
            LibraryError: the library lacks one of them, or has another version of it.
        """
        for name, version in sorted(needed.items()):
            found = self.op_versions.get(name)
            if found == version:
                continue
            got = f"{name} version {found}" if found is not None else f"no {name}"
            raise LibraryError(
                f"plugins: {self.path.name} {self.version}: got {got}, expected {name} version {version}; export and "
                "build the engine again with this enginewright, or install the version that built it"
            )


def load_tensorrt_library(path: Path) -> TensorRTLibrary:
    """Load the library at `path`; `open_tensorrt_library` loads the installed one.

    Raises:
        LibraryError: the library does not load, or its ops differ from those of this package.
    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryError(f"plugins: {path.name} does not load: {error}; {_BUILD_AGAIN}") from error
    declared = json.loads(_text(library, "ew_trt_ops"))
    versions = {op["name"]: int(op["version"]) for op in declared["ops"]}
    wanted = {op.name: op.version for op in GPU_OPS.values()}
    for name in sorted(versions.keys() | wanted.keys()):
        if versions.get(name) != wanted.get(name):
            raise LibraryError(
                f"plugins: {path.name}: got {name} version {versions.get(name, 'none')}, "
                f"expected {wanted.get(name, 'none')}; {_BUILD_AGAIN}"
            )
    return TensorRTLibrary(path=path, version=_text(library, "ew_trt_version"), op_versions=versions)


@cache
def open_tensorrt_library() -> TensorRTLibrary:
    """Load the installed library.

    Raises:
        LibraryError: the library was not built, does not load, or is of another version.
    """
    return load_tensorrt_library(library_path(TENSORRT_LIBRARY))


def check_versions(needed: Mapping[str, int]) -> None:
    """Check that the installed library has these ops in these versions.

    Raises:
        LibraryError: there is no library, or it lacks one of the ops, or has another version of it.
    """
    open_tensorrt_library().check_versions(needed)


def _text(library: ctypes.CDLL, name: str) -> str:
    """The text that the C function `name` of a plugin library returns.

    Raises:
        LibraryError: the library has no such function.
    """
    try:
        function = getattr(library, name)
    except AttributeError as error:
        raise LibraryError(
            f"plugins: got a library without {name}, expected {TENSORRT_LIBRARY}; {_BUILD_AGAIN}"
        ) from error
    function.restype, function.argtypes = ctypes.c_char_p, []
    return str(function().decode())
