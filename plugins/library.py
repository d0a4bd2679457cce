"""Where the native libraries are, and the few C functions that Python calls in them.

The runtime loads kernels through ONNX Runtime (`ort_library`); the greedy sampler and the tests call C functions of
the same library (`argmax_rows`, `set_cpu_isa`). Standard library only at import.
"""

from __future__ import annotations

import ctypes
import json
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ORT_LIBRARY = "enginewright_ort"


class LibraryError(RuntimeError):
    """A native library is missing or cannot be built."""


def _file_name(name: str) -> str:
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
    folders = _library_folders()
    for folder in folders:
        path = folder / _file_name(ORT_LIBRARY)
        if path.exists():
            return path
    looked = ", ".join(map(str, folders))
    raise LibraryError(
        f"plugins: got no {_file_name(ORT_LIBRARY)} in {looked}, expected the library that a C++ compiler builds; do: "
        "install a C++ compiler (Debian: apt-get install g++) and reinstall with `pip install --force-reinstall "
        "enginewright`, or in a checkout run `python -m enginewright.plugins.build`"
    )


@cache
def load_ort_library() -> ctypes.CDLL:
    """The library with its C functions typed; calls release the GIL. The same instance that ONNX Runtime loads."""
    library = ctypes.CDLL(str(ort_library()))
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ew_argmax_rows": (None, [pointer, size, size, pointer, pointer]),
        "ew_cpu_isa": (ctypes.c_char_p, []),
        "ew_cpu_set_isa": (ctypes.c_int, [ctypes.c_char_p]),
        "ew_read_sum": (ctypes.c_float, [pointer, size]),
        "ew_op_declarations": (ctypes.c_char_p, []),
        "ew_ort_entries": (ctypes.c_char_p, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def argmax_rows(logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Index and value of each row's largest logit; logits[rows, vocab] float32, C-contiguous, vocab at least 1.

    The lowest index wins ties; a row with a NaN gives (-1, NaN), a row of nothing but -inf (0, -inf).

    Raises:
        ValueError: another shape, type or memory order.
    """
    import numpy as np

    if logits.ndim != 2 or logits.dtype != np.float32 or not logits.flags.c_contiguous or logits.shape[1] < 1:
        raise ValueError(
            f"argmax_rows: got {logits.dtype} {logits.shape}, expected C-contiguous float32 [rows, vocab >= 1]"
        )
    rows, vocab = logits.shape
    index, value = np.empty(rows, np.int64), np.empty(rows, np.float32)
    load_ort_library().ew_argmax_rows(logits.ctypes.data, rows, vocab, index.ctypes.data, value.ctypes.data)
    return index, value


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
