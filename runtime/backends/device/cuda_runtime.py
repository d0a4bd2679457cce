"""The CUDA runtime for Python: memory, streams, copies and graphs, through NVIDIA's own package `cuda-bindings`.

It provides the addresses and streams that TensorRT works on. The package is imported when a runtime is opened.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

from enginewright.runtime.errors import UnsupportedError

_MEBIBYTE = 2**20


class CudaRuntime:
    """A `DeviceLibrary` on the current device; created by `open_cuda_runtime`.

    api: the module `cuda.bindings.runtime`.

    Raises:
        UnsupportedError: there is no driver, or no device.
    """

    def __init__(self, api: Any) -> None:
        self._api = api
        status, count = api.cudaGetDeviceCount()
        if status != api.cudaError_t.cudaSuccess or not count:
            reason = "no device" if status == api.cudaError_t.cudaSuccess else self._text(status)
            raise UnsupportedError(
                f"cuda: got no GPU that CUDA can use ({reason}), expected one with NVIDIA's driver; install the driver, or "
                "run the engine where there is one"
            )
        self._device = self._get("device", api.cudaGetDevice())

    def enter_thread(self) -> None:
        """Make the device current in this thread; CUDA keeps the current device for each thread, at first device 0."""
        self._do("device", self._api.cudaSetDevice(self._device))

    def compute_capability(self) -> str:
        """Return the device's compute capability, such as "sm_90"."""
        names = self._api.cudaDeviceAttr
        attributes = (names.cudaDevAttrComputeCapabilityMajor, names.cudaDevAttrComputeCapabilityMinor)
        major, minor = (
            self._get("device", self._api.cudaDeviceGetAttribute(each, self._device)) for each in attributes
        )
        return f"sm_{major}{minor}"

    def allocate(self, bytes: int, *, host: bool = False) -> int:
        """Return the address of zeroed memory on the device, or of pinned memory on the host; `free` gives it back.

        Raises:
            MemoryError: there is too little memory; the text says what was needed and what is free.
        """
        size, api = max(bytes, 1), self._api
        status, address = api.cudaMallocHost(size) if host else api.cudaMalloc(size)
        if status == api.cudaError_t.cudaErrorMemoryAllocation:
            api.cudaGetLastError()
            what = "pinned memory" if host else "device memory"
            free = "less" if host else f"{self.free_bytes() // _MEBIBYTE} MiB free"
            raise MemoryError(
                f"cuda: {what}: got {free}, expected {-(-size // _MEBIBYTE)} MiB; use a smaller cache or batch"
            )
        self._check("memory", status)
        if host:
            ctypes.memset(int(address), 0, size)
        else:
            self._do("memory", api.cudaMemset(address, 0, size))
            self._do("memory", api.cudaDeviceSynchronize())  # non-blocking streams would not wait for it
        return int(address)

    def free(self, address: int, *, host: bool = False) -> None:
        """Give memory back that `allocate` returned."""
        self._do("memory", self._api.cudaFreeHost(address) if host else self._api.cudaFree(address))

    def free_bytes(self) -> int:
        """Return the bytes of device memory that are free."""
        status, free, _ = self._api.cudaMemGetInfo()
        self._check("memory", status)
        return int(free)

    def create_stream(self) -> int:
        """Create a stream; `destroy_stream` ends it."""
        return int(self._get("stream", self._api.cudaStreamCreateWithFlags(self._api.cudaStreamNonBlocking)))

    def destroy_stream(self, stream: int) -> None:
        """End a stream."""
        self._do("stream", self._api.cudaStreamDestroy(stream))

    def synchronize(self, stream: int) -> None:
        """Wait for everything that was started on `stream`."""
        self._do("stream", self._api.cudaStreamSynchronize(stream))

    def copy(self, to: int, source: int, bytes: int, stream: int) -> None:
        """Start a copy, in order with everything else on `stream`.

        Between the device and pinned memory, this does not wait for the copy.
        """
        kind = self._api.cudaMemcpyKind.cudaMemcpyDefault
        self._do("copy", self._api.cudaMemcpyAsync(to, source, bytes, kind, stream))

    def copy_pieces(
        self, to: int, to_pitch: int, source: int, source_pitch: int, width: int, count: int, stream: int
    ) -> None:
        """Start a copy of `count` pieces of `width` bytes, `source_pitch` bytes apart, to places `to_pitch` bytes apart."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDefault
        self._do("copy", self._api.cudaMemcpy2DAsync(to, to_pitch, source, source_pitch, width, count, kind, stream))

    def begin_capture(self, stream: int) -> None:
        """From now on, record the work that is put on `stream` instead of starting it."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do("capture", self._api.cudaStreamBeginCapture(stream, mode))

    def end_capture(self, stream: int) -> int:
        """Return the recorded work as a graph for `launch_graph`; `destroy_graph` ends it.

        Raises:
            UnsupportedError: the work contains something that cannot be recorded.
        """
        graph = self._get("capture", self._api.cudaStreamEndCapture(stream))
        try:
            return int(self._get("graph", self._api.cudaGraphInstantiate(graph, 0)))
        finally:
            self._do("graph", self._api.cudaGraphDestroy(graph))

    def launch_graph(self, graph: int, stream: int) -> None:
        """Start the recorded work on `stream`."""
        self._do("graph", self._api.cudaGraphLaunch(graph, stream))

    def destroy_graph(self, graph: int) -> None:
        """Destroy a graph."""
        self._do("graph", self._api.cudaGraphExecDestroy(graph))

    def _get(self, where: str, result: tuple[Any, Any]) -> Any:
        status, value = result
        self._check(where, status)
        return value

    def _do(self, where: str, result: tuple[Any]) -> None:
        self._check(where, result[0])

    def _check(self, where: str, status: Any) -> None:
        if status != self._api.cudaError_t.cudaSuccess:
            self._api.cudaGetLastError()  # clears the error, which TensorRT would otherwise take for its own
            raise UnsupportedError(
                f"cuda: {where}: got {self._text(status)}, expected success; look for other processes on the GPU and at "
                "the driver's version"
            )

    def _text(self, status: Any) -> str:
        _, text = self._api.cudaGetErrorString(status)
        return f"{status.name}: {text.decode() if isinstance(text, bytes) else text}"


def open_cuda_runtime(extra: str) -> CudaRuntime:
    """Open the CUDA runtime on the current device.

    extra: the optional dependency of this package that installs the bindings, for the error message.

    Raises:
        UnsupportedError: the bindings, the driver or the device is missing.
    """
    try:
        api = importlib.import_module("cuda.bindings.runtime")
    except ImportError as e:
        raise UnsupportedError(
            f"cuda: got no Python package cuda.bindings ({e}), expected NVIDIA's bindings of CUDA; "
            f"pip install 'enginewright[{extra}]'"
        ) from e
    return CudaRuntime(api)
