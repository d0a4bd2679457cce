"""Where the native libraries are, and the few C functions that Python calls in them.

The runtime loads kernels through ONNX Runtime (`ort_library`); tests and benchmarks call C functions of the same library
(`set_cpu_isa`). Standard library only at import.
"""

from __future__ import annotations

import ctypes
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

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
    """What the platform calls the shared library `name`."""
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    return f"{'' if sys.platform == 'win32' else 'lib'}{name}{suffix}"


def _library_folders() -> list[Path]:
    """`lib` beside this file, then in every folder of the package: an editable install splits code and libraries."""
    package = sys.modules[__name__.rpartition(".")[0]]
    folders = [Path(__file__).resolve().parent, *map(Path, package.__path__)]
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


@cache
def load_ort_library() -> ctypes.CDLL:
    """The library with its C functions typed; calls release the GIL. The same instance that ONNX Runtime loads."""
    library = ctypes.CDLL(str(ort_library()))
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ew_cpu_isa": (ctypes.c_char_p, []),
        "ew_cpu_set_isa": (ctypes.c_int, [ctypes.c_char_p]),
        "ew_read_sum": (ctypes.c_float, [pointer, size]),
        "ew_op_declarations": (ctypes.c_char_p, []),
        "ew_ort_entries": (ctypes.c_char_p, []),
        "ew_sweep_scales": (None, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def cpu_isa() -> str:
    """The instruction set that the kernels use: `avx512`, `avx2` or `portable`."""
    name: bytes = load_ort_library().ew_cpu_isa()
    return name.decode()


def set_cpu_isa(name: str) -> bool:
    """Use another instruction set from now on in this process, `auto` for the best one; False if it cannot run here.

    For tests and benchmarks; no engine depends on it.
    """
    return bool(load_ort_library().ew_cpu_set_isa(name.encode()) == 0)


def declared_ops() -> dict[str, Any]:
    """What the library registers with ONNX Runtime: `{"domain": ..., "ops": [{"name", "version", "inputs", ...}]}`."""
    declared: dict[str, Any] = json.loads(load_ort_library().ew_op_declarations())
    return declared


def ort_entries() -> dict[str, int]:
    """Name -> index of the entries of ONNX Runtime's function table that the library calls."""
    return {name: index for index, name in json.loads(load_ort_library().ew_ort_entries()) if index >= 0}
