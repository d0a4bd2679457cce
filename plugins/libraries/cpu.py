"""Calls the C functions of the CPU library, for tests, benchmarks and PiSO."""

from __future__ import annotations

import ctypes
import json
from functools import cache
from typing import Any

from enginewright.plugins.libraries.locate import ort_library


@cache
def load_ort_library() -> ctypes.CDLL:
    """Load the library and type its C functions; calls release the GIL.

    It is the same instance that ONNX Runtime loads.

    Raises:
        LibraryError: the library was not built.
    """
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
    """The instruction set of the kernels: `avx512bf16`, `avx512vnni`, `avx512`, `avx2vnni`, `avx2` or `portable`."""
    name: bytes = load_ort_library().ew_cpu_isa()
    return name.decode()


def set_cpu_isa(name: str) -> bool:
    """Make this process use another instruction set from now on; return False if it cannot run here.

    name: as `cpu_isa` returns it, or `auto` for the best one.

    For tests and benchmarks; no engine depends on it.
    """
    return bool(load_ort_library().ew_cpu_set_isa(name.encode()) == 0)


def declared_ops() -> dict[str, Any]:
    """The ops that the library registers with ONNX Runtime: `{"domain": ..., "ops": [{"name", "version", "inputs", ...}]}`."""
    declared: dict[str, Any] = json.loads(load_ort_library().ew_op_declarations())
    return declared


def ort_entries() -> dict[str, int]:
    """Name -> index of each entry of ONNX Runtime's function table that the library calls."""
    return {name: index for index, name in json.loads(load_ort_library().ew_ort_entries()) if index >= 0}
