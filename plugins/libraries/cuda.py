"""Calls the C functions of `libenginewright_cuda`; turns their errors into exceptions.

`cuda_calls.py` makes the structures of calls. Tests and benchmarks call kernels through this module; engines
reach them through their host's adapter. Standard library only.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

from enginewright.plugins.libraries.cuda_calls import CallStructure, function_of
from enginewright.plugins.libraries.locate import CUDA_LIBRARY, LibraryError, library_path

ABI = 2
# The manifest's names for engines of ONNX Runtime's CUDA provider, and for the GPUs that they run on.
ORT_BACKEND, ORT_COMPUTE = "onnxruntime-cuda", "cuda-sm_80+"
HALF, BFLOAT16 = 0, 1

_pointer, _int64 = ctypes.c_void_p, ctypes.c_int64
_MEMORY_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "allocate": (_pointer, [_int64]),
    "allocate_host": (_pointer, [_int64]),
    "free": (None, [_pointer]),
    "free_host": (None, [_pointer]),
    "free_bytes": (_int64, []),
    "create_stream": (_pointer, []),
    "destroy_stream": (None, [_pointer]),
    "synchronize": (ctypes.c_int, [_pointer]),
    "copy": (ctypes.c_int, [_pointer, _int64, _pointer, _int64, _int64, _int64, _pointer]),
}


class CudaLibrary:
    """The library at `path`, loaded; `open_cuda_library` creates one for the installed library.

    Raises:
        LibraryError: the library does not load, or its ABI differs from this package's.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise LibraryError(f"plugins: {path.name} does not load: {error}") from error
        self.path = path
        for name in ("error", "version"):
            self._function(name).restype = ctypes.c_char_p
        for name, (result, arguments) in _MEMORY_FUNCTIONS.items():
            self._function(name).restype, self._function(name).argtypes = result, arguments
        found = int(self._function("abi")())
        if found != ABI:
            raise LibraryError(
                f"plugins: {path.name}: got ABI {found} (version {self.version}), expected {ABI}; "
                "build or install the library again, from the same version as this package"
            )

    def _function(self, name: str) -> Any:
        return getattr(self._library, f"ew_cuda_{name}")

    @property
    def version(self) -> str:
        """Version of the package that the library was built from."""
        return str(self._function("version")().decode())

    def check_device(self) -> None:
        """Raise LibraryError if the driver or the device cannot run the library."""
        if self._function("check_device")() < 0:
            raise LibraryError(self._error())

    def workspace_bytes(self, call: CallStructure) -> int:
        """Bytes of device memory that `call` needs in addition to its tensors.

        Raises:
            ValueError: the library refuses the call.
        """
        function = self._function(f"{function_of(call)}_workspace")
        function.restype, function.argtypes = _int64, [_pointer]
        needed = int(function(ctypes.byref(call)))
        if needed < 0:
            raise ValueError(self._error())
        return needed

    def start(self, call: CallStructure, workspace: int | None, workspace_bytes: int, stream: int = 0) -> None:
        """Start `call` on `stream`; all pointers are addresses of device memory.

        Raises:
            ValueError: the library refuses the call.
        """
        function = self._function(function_of(call))
        function.argtypes = [_pointer, _pointer, _int64, _pointer]
        if function(ctypes.byref(call), workspace, workspace_bytes, stream) < 0:
            raise ValueError(self._error())

    def probe(self, pointers: list[int], stream: int = 0) -> None:
        """Run `csrc/launchers/probe.cu`, which calls every device primitive once.

        Raises:
            ValueError: the library refuses the call.
        """
        array = (_pointer * len(pointers))(*pointers)
        function = self._function("probe")
        function.argtypes = [_pointer, _pointer]
        if function(array, stream) < 0:
            raise ValueError(self._error())

    def allocate(self, bytes: int, *, host: bool = False) -> int:
        """Allocate zeros on the device, or in the host's pinned memory, and return their address; `free` returns the memory.

        Raises:
            MemoryError: there is not enough memory; the message says how much was needed and how much is free.
        """
        address = self._function("allocate_host" if host else "allocate")(max(bytes, 1))
        if not address:
            raise MemoryError(self._error())
        return int(address)

    def free(self, address: int, *, host: bool = False) -> None:
        """Return memory that `allocate` gave, with the same `host`."""
        self._function("free_host" if host else "free")(address)

    def free_bytes(self) -> int:
        """Bytes of device memory that are free."""
        return int(self._function("free_bytes")())

    def create_stream(self) -> int:
        """Create a stream; `destroy_stream` destroys it."""
        return self._checked(self._function("create_stream")() or -1)

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._function("destroy_stream")(stream)

    def synchronize(self, stream: int) -> None:
        """Wait until everything started on `stream` is done."""
        self._checked(self._function("synchronize")(stream))

    def copy(self, to: int, source: int, bytes: int, stream: int) -> None:
        """Copy `bytes` bytes, in order with the other work on `stream`.

        Between device and pinned memory this returns before the copy is done.
        """
        self.copy_pieces(to, bytes, source, bytes, bytes, 1, stream)

    def copy_pieces(
        self, to: int, to_pitch: int, source: int, source_pitch: int, width: int, count: int, stream: int
    ) -> None:
        """Copy `count` pieces of `width` bytes, which lie `to_pitch` bytes apart in `to` and `source_pitch` in `source`."""
        self._checked(self._function("copy")(to, to_pitch, source, source_pitch, width, count, stream))

    def _checked(self, result: int) -> int:
        if result < 0:
            raise LibraryError(self._error())
        return result

    def _error(self) -> str:
        return str(self._function("error")().decode())


@cache
def open_cuda_library() -> CudaLibrary:
    """Open the installed library.

    Raises:
        LibraryError: the library was not built, or does not load.
    """
    return CudaLibrary(library_path(CUDA_LIBRARY))
