"""A strict CUDA runtime on the CPU: the part of `cuda.bindings.runtime` that a session uses, over host memory.

Work on a stream runs only when something waits for the stream, so a session that reuses memory too early computes something
else. Captured graphs record the work and repeat it at every launch. New memory is poisoned, and an access to memory that is
not allocated fails.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

POISON = 0xFF  # floats of these bytes are NaN, integers -1
ALIGNMENT = 256

cudaError_t = enum.IntEnum(
    "cudaError_t",
    {
        "cudaSuccess": 0,
        "cudaErrorInvalidValue": 1,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorInsufficientDriver": 35,
        "cudaErrorStreamCaptureUnsupported": 900,
        "cudaErrorStreamCaptureInvalidated": 901,
    },
)
OK = cudaError_t.cudaSuccess
REFUSED = cudaError_t.cudaErrorStreamCaptureUnsupported


class Misuse(AssertionError):
    """An error that a real device would answer with a crash or with wrong numbers."""


@dataclass
class Block:
    """Allocated memory.

    raw: the object that owns the memory.
    """

    address: int
    size: int
    host: bool
    raw: Any


@dataclass
class Action:
    """A piece of work, and the addresses that it reads and writes."""

    do: Callable[[], None]
    touches: tuple[int, ...]


@dataclass
class Stream:
    """A stream.

    pending: the work that has been started.
    captured: the work of the capture under way; None if there is none.
    broken: whether the capture under way has failed.
    """

    pending: list[Action] = field(default_factory=list)
    captured: list[Action] | None = None
    broken: bool = False


class FakeCuda:
    """The module and its device, which is current in the thread that creates it; other threads have device 0 as current.

    launches: the number of launches of graphs so far.
    free: the bytes that the device reports as free.
    """

    cudaError_t = cudaError_t
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor="major", cudaDevAttrComputeCapabilityMinor="minor"
    )
    cudaStreamNonBlocking = 1

    def __init__(self, capability: tuple[int, int] = (9, 0), free: int = 1 << 30, device: int = 1) -> None:
        self.capability = capability
        self.device = device
        self._thread = threading.local()
        self._thread.device = device
        self.free = free
        self.devices = 1
        self.last: Any = OK  # the error that nobody has asked for yet
        self.launches = 0
        self.blocks: dict[int, Block] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Action]] = {}
        self._next = 1000

    # ---- what the fakes ask

    def check(self, address: int, size: int, *, device: bool = False) -> None:
        """Raise Misuse unless these bytes are allocated, and, with `device`, on the device."""
        for block in self.blocks.values():
            if block.address <= address and address + size <= block.address + block.size:
                if device and block.host:
                    raise Misuse(f"{address:#x}: host memory where the device's is expected")
                return
        raise Misuse(f"{address:#x}: {size} bytes that are not allocated")

    def start(self, stream: int, do: Callable[[], None], *touches: int) -> None:
        """Do something in order on `stream`, or record it. touches: addresses that it reads and writes."""
        if stream not in self.streams:
            raise Misuse(f"stream {stream} is none")
        if getattr(self._thread, "device", 0) != self.device:
            raise Misuse(f"stream {stream} is another device's than this thread's")
        own = self.streams[stream]
        (own.pending if own.captured is None else own.captured).append(Action(do, touches))

    def is_capturing(self, stream: int) -> bool:
        return self.streams[stream].captured is not None

    def _refuse(self) -> bool:
        """Whether a capture is under way, which is then in vain."""
        capturing = [each for each in self.streams.values() if each.captured is not None]
        for each in capturing:
            each.broken = True
        return bool(capturing)

    def _fail(self, error: Any, *values: Any) -> tuple[Any, ...]:
        self.last = error
        return error, *values

    def _id(self) -> int:
        self._next += 1
        return self._next

    # ---- the module

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (OK, self.devices) if self.devices else self._fail(cudaError_t.cudaErrorInsufficientDriver, None)

    def cudaGetDevice(self) -> tuple[Any, int]:
        return OK, getattr(self._thread, "device", 0)

    def cudaSetDevice(self, device: int) -> tuple[Any]:
        self._thread.device = device
        return (OK,)

    def cudaDeviceGetAttribute(self, attr: Any, device: int) -> tuple[Any, int]:
        return OK, self.capability[("major", "minor").index(attr)]

    def cudaGetErrorString(self, error: Any) -> tuple[Any, bytes]:
        return OK, f"text of {error.name}".encode()

    def cudaGetLastError(self) -> tuple[Any]:
        last, self.last = self.last, OK
        return (last,)

    def cudaMemGetInfo(self) -> tuple[Any, int, int]:
        return OK, self.free, 1 << 40

    def cudaMalloc(self, size: int) -> tuple[Any, int | None]:
        return self._allocate(size, host=False)

    def cudaMallocHost(self, size: int) -> tuple[Any, int | None]:
        return self._allocate(size, host=True)

    def _allocate(self, size: int, *, host: bool) -> tuple[Any, int | None]:
        if self._refuse():
            return self._fail(REFUSED, None)
        if not host and size > self.free:
            return self._fail(cudaError_t.cudaErrorMemoryAllocation, None)
        raw = (ctypes.c_byte * (size + ALIGNMENT))()
        address = ctypes.addressof(raw) + -ctypes.addressof(raw) % ALIGNMENT
        ctypes.memset(address, POISON, size)
        self.blocks[address] = Block(address, size, host, raw)
        self.free -= 0 if host else size
        return OK, address

    def cudaFree(self, devPtr: int) -> tuple[Any]:
        return self._free(devPtr, host=False)

    def cudaFreeHost(self, ptr: int) -> tuple[Any]:
        return self._free(ptr, host=True)

    def _free(self, address: int, *, host: bool) -> tuple[Any]:
        block = self.blocks.pop(address, None)
        if block is None or block.host != host:
            raise Misuse(f"{address:#x}: given back, but not allocated so")
        under_way = [address for stream in self.streams.values() for each in stream.pending for address in each.touches]
        if any(block.address <= each < block.address + block.size for each in under_way):
            raise Misuse(f"{address:#x}: given back while something that uses it is under way")
        ctypes.memset(address, POISON, block.size)
        self.free += 0 if host else block.size
        return (OK,)

    def cudaMemset(self, devPtr: int, value: int, count: int) -> tuple[Any]:
        self.check(devPtr, count, device=True)
        ctypes.memset(devPtr, value, count)
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, int]:
        stream = self._id()
        self.streams[stream] = Stream()
        return OK, stream

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        if self.streams.pop(stream).pending:
            raise Misuse("a stream is ended while something is under way")
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        if self._refuse():
            return self._fail(REFUSED)
        own = self.streams[stream]
        actions, own.pending = own.pending, []
        for action in actions:
            action.do()
        return (OK,)

    def cudaDeviceSynchronize(self) -> tuple[Any]:
        for stream in self.streams:
            (status,) = self.cudaStreamSynchronize(stream)
            if status != OK:
                return (status,)
        return (OK,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: int) -> tuple[Any]:
        return self.cudaMemcpy2DAsync(dst, count, src, count, count, 1, kind, stream)

    def cudaMemcpy2DAsync(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: Any, stream: int
    ) -> tuple[Any]:
        if min(dpitch, spitch) < width:
            return self._fail(cudaError_t.cudaErrorInvalidValue)

        def copy() -> None:
            for row in range(height):
                self.check(dst + row * dpitch, width)
                self.check(src + row * spitch, width)
                ctypes.memmove(dst + row * dpitch, src + row * spitch, width)

        self.start(stream, copy, dst, src)
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any]:
        own = self.streams[stream]
        if own.captured is not None:
            return self._fail(REFUSED)
        own.captured, own.broken = [], False
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, Any]:
        own = self.streams[stream]
        if own.captured is None:
            return self._fail(cudaError_t.cudaErrorInvalidValue, None)
        captured, own.captured = own.captured, None
        return self._fail(cudaError_t.cudaErrorStreamCaptureInvalidated, None) if own.broken else (OK, captured)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, int]:
        handle = self._id()
        self.graphs[handle] = graph
        return OK, handle

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any]:
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec: int) -> tuple[Any]:
        if self.graphs.pop(graphExec, None) is None:
            raise Misuse("a graph is ended that is none")
        return (OK,)

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> tuple[Any]:
        if graphExec not in self.graphs:
            raise Misuse("a graph is launched that is none")
        self.launches += 1
        for action in self.graphs[graphExec]:
            self.start(stream, action.do, *action.touches)
        return (OK,)
