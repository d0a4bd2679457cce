"""Finds the files of the native libraries.

The runtime hands the path to its host (`ort_library` to ONNX Runtime); tests and benchmarks call C functions of the same
libraries through `cpu.py` and `cuda.py`. Standard library only.
"""

from __future__ import annotations

import sys
from pathlib import Path

ORT_LIBRARY = "enginewright_ort"
CUDA_LIBRARY = "enginewright_cuda"
TENSORRT_LIBRARY = "enginewright_trt"
_HOW_TO_BUILD = {
    ORT_LIBRARY: "install a C++ compiler (Debian: apt-get install g++) and reinstall with `pip install --force-reinstall "
    "enginewright`, or in a checkout run `python -m enginewright.plugins.build`",
    CUDA_LIBRARY: "install CUDA 13's nvcc, then in a checkout run `python -m enginewright.plugins.build --cuda`",
    TENSORRT_LIBRARY: "install CUDA 13's nvcc and unpack TensorRT's SDK, then in a checkout run "
    "`python -m enginewright.plugins.build --tensorrt SDK`",
}


class LibraryError(RuntimeError):
    """A native library is missing or cannot be built."""


def file_name(name: str) -> str:
    """The file name of the shared library `name` on this platform."""
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    return f"{'' if sys.platform == 'win32' else 'lib'}{name}{suffix}"


def _library_folders() -> list[Path]:
    """The `lib` folders of `enginewright.plugins`: the checkout's, then the installed one, which an editable install adds."""
    package = sys.modules[__name__.rsplit(".", 2)[0]]
    folders = [Path(__file__).resolve().parents[1], *map(Path, package.__path__)]
    return [folder / "lib" for folder in dict.fromkeys(folders)]


def ort_library() -> Path:
    """Path of `libenginewright_ort`, for `SessionOptions.register_custom_ops_library`.

    Raises:
        LibraryError: the library was not built.
    """
    return library_path(ORT_LIBRARY)


def library_path(name: str) -> Path:
    """Path of the library `name`: ORT_LIBRARY, CUDA_LIBRARY or TENSORRT_LIBRARY.

    Raises:
        LibraryError: the library was not built.
    """
    folders = _library_folders()
    for folder in folders:
        path = folder / file_name(name)
        if path.exists():
            return path
    looked = ", ".join(map(str, folders))
    needs = {ORT_LIBRARY: "a C++ compiler", CUDA_LIBRARY: "nvcc", TENSORRT_LIBRARY: "nvcc with TensorRT's headers"}[
        name
    ]
    raise LibraryError(
        f"plugins: got no {file_name(name)} in {looked}, expected the library that {needs} builds; do: "
        f"{_HOW_TO_BUILD[name]}"
    )
