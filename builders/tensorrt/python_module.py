"""TensorRT's Python module and the objects it calls back: logger, progress monitor, writer.

The module is found when a build begins, never at import.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO

from tqdm import tqdm

from enginewright.plugins.libraries.tensorrt import EXTRAS, MODULES
from enginewright.runtime.backends.device.cuda_runtime import open_cuda_runtime
from enginewright.runtime.errors import BuildError, TargetError, UnsupportedError

PORTABLE = "sm_80+"
"""TensorRT-RTX's default target: compute capability 8.0 and later."""


def open_module(backend: str) -> Any:
    """Import and return the backend's module.

    Raises:
        TargetError: TensorRT is missing; the machine that runs the engine needs it anyway, and can build it.
        BuildError: TensorRT-RTX is missing; it can be installed anywhere.
    """
    try:
        return importlib.import_module(MODULES[backend])
    except ImportError as e:
        message = (
            f"--backend {backend}: got no Python package {MODULES[backend]} ({e}); "
            f"pip install 'enginewright[{EXTRAS[backend]}]'"
        )
        raise BuildError(message) if backend == "tensorrt-rtx" else TargetError(message) from e


def device_compute() -> str:
    """The compute capability of the current GPU, such as "sm_90".

    Raises:
        TargetError: there is no GPU that CUDA can use.
    """
    try:
        return open_cuda_runtime("tensorrt").compute_capability()
    except UnsupportedError as e:
        raise TargetError(f"--backend tensorrt: {e}") from e


class CallbackErrors:
    """Keeps an exception of a callback until TensorRT, which must see no Python exception, has returned.

    `PlanBuilder.build` creates one for each build.
    error: the first exception; set by `guard`.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keep an exception that the block raises because of a signal or a full disk."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit, OSError) as e:
            self.error = self.error or e

    def release(self) -> None:
        """Raise the kept exception, if there is one."""
        if self.error is not None:
            raise self.error


@cache
def open_logger(trt: Any) -> Any:
    """The one logger of `trt`: TensorRT keeps the first one it sees for good.

    Its list `errors` holds the error messages since the list was last cleared.
    """

    class Messages(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message.strip())

    return Messages()


def open_progress(trt: Any, errors: CallbackErrors) -> Any:
    """A monitor that shows TensorRT's phases on a terminal and stops the build after an interrupt."""

    class Progress(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.bars: dict[str, tqdm[Any]] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            with errors.guard():
                self.bars[phase] = tqdm(total=steps, desc=phase, disable=None, leave=False, unit="step")

        def step_complete(self, phase: str, step: int) -> bool:
            with errors.guard():
                self.bars[phase].update(step + 1 - self.bars[phase].n)
            return errors.error is None

        def phase_finish(self, phase: str) -> None:
            with errors.guard():
                self.bars.pop(phase).close()
                _give_memory_back()

        def close(self) -> None:
            for bar in self.bars.values():
                bar.close()

    return Progress()


def _give_memory_back() -> None:
    """Return freed memory to the system; glibc would keep what a phase of the build frees, half as much as the weights."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def open_writer(trt: Any, file: BinaryIO, errors: CallbackErrors) -> Any:
    """A stream into `file`, so that the plan is never whole in memory."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            with errors.guard():
                file.write(data)
                return len(data)
            return -1

    return Writer()
