"""The backends by name, and the choice of one for an engine directory."""

from __future__ import annotations

from collections.abc import Callable

from enginewright.plugins.libraries.cuda import ORT_BACKEND
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.backend import Backend
from enginewright.runtime.backends.onnxruntime.backend import CpuBackend, CudaBackend
from enginewright.runtime.backends.tensorrt.backend import TensorRTBackend
from enginewright.runtime.errors import RequestError, UnsupportedError

CPU = "onnxruntime"
OPENERS: dict[str, Callable[[int | None], Backend]] = {
    "tensorrt": lambda _: TensorRTBackend("tensorrt"),
    "tensorrt-rtx": lambda _: TensorRTBackend("tensorrt-rtx"),
    ORT_BACKEND: lambda _: CudaBackend(),
    CPU: CpuBackend,
}
"""Name of a backend -> function that opens it, given the CPU threads to use; in order of preference."""


def choose_backend(manifest: Manifest, threads: int | None, name: str | None = None) -> Backend:
    """Return the backend called `name`; without a name, the first of OPENERS that has an engine and can run here.

    A directory without engines runs its graph on the CPU.

    Raises:
        RequestError: there is no backend of that name, or the directory has no engine for it.
        UnsupportedError: the chosen backend lacks something on this machine; without a name, every backend does.
    """
    built = {engine.backend for engine in manifest.graphs["decoder"].engines}
    if name is not None:
        _check_name(manifest, built, name)
        return OPENERS[name](threads)
    reasons: dict[str, UnsupportedError] = {}
    for candidate in OPENERS:
        if candidate in built:
            try:
                return OPENERS[candidate](threads)
            except UnsupportedError as e:
                reasons[candidate] = e
    if not reasons:
        return CpuBackend(threads)
    *_, last = reasons.values()
    told = [str(e) if str(e).startswith(each) or len(reasons) == 1 else f"{each}: {e}" for each, e in reasons.items()]
    hint = f", or pass --backend {CPU} to run the graph on the CPU" if runs_on_cpu(manifest) else ""
    raise UnsupportedError(f"{'; '.join(told)}{hint}") from last


def runs_on_cpu(manifest: Manifest) -> bool:
    """Whether ONNX Runtime can run the graph itself on a CPU; there our ops compute in nothing but float32."""
    return manifest.dtype == "float32" or (manifest.dtype == "float16" and not manifest.graphs["decoder"].ops)


def _check_name(manifest: Manifest, built: set[str], name: str) -> None:
    if name not in OPENERS:
        raise RequestError(f"load: backend: got {name!r}, expected one of {', '.join(OPENERS)}")
    if name not in built and name != CPU:
        raise RequestError(
            f"load: backend: got {name!r}, but {manifest.name} has engines for {', '.join(sorted(built)) or 'none'}; "
            f"`enginewright compile DIR --backend {name}` builds one"
        )
    if name == CPU and not runs_on_cpu(manifest):
        raise UnsupportedError(
            f"load: backend: got {name!r}, but the graph of {manifest.name} computes in half precision, which our ops do "
            "not do on a CPU; choose another backend, or build with --dtype float32"
        )
