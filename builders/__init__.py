"""Builds an engine directory's graphs for a backend: ONNX Runtime on a CPU or GPU, TensorRT, or TensorRT-RTX.

A backend is a module with `build(root, manifest, backend, options) -> Manifest`, found by name.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from enginewright.builders.options import BackendOptions
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.errors import BuildError

BACKENDS = {
    "onnxruntime": "enginewright.builders.onnxruntime.cpu",
    "onnxruntime-cuda": "enginewright.builders.onnxruntime.cuda",
    "tensorrt": "enginewright.builders.tensorrt.build",
    "tensorrt-rtx": "enginewright.builders.tensorrt.build",
}


def check_backend(name: str, options: BackendOptions | None = None) -> None:
    """Raise BuildError unless `name` is a known backend and takes all `options` that are set."""
    if name not in BACKENDS:
        raise BuildError(f"--backend: unknown backend {name!r}; known: {', '.join(sorted(BACKENDS))}")
    if options is not None:
        options.check(name)


def check_numbers(backend: str, dtype: str, *, is_packed: bool) -> None:
    """Raise BuildError unless `backend` runs graphs that compute in `dtype`.

    is_packed: the graph contains enginewright's own ops. A graph of standard ops alone runs on every backend that has its
    type, except on onnxruntime-cuda.
    """
    if backend == "tensorrt-rtx" and is_packed:
        raise BuildError(
            f"--backend {backend}: got a graph with enginewright's own ops, expected standard ops alone, because "
            "TensorRT-RTX takes no plugins; build with --plugins none"
        )
    if backend == "onnxruntime" and is_packed and dtype != "float32":
        raise BuildError(
            f"--backend {backend}: got a graph that computes in half precision, expected float32, the only type that the "
            "kernels for CPUs take; build without --dtype, or with --backend onnxruntime-cuda"
        )
    if backend == "onnxruntime" and dtype == "bfloat16":
        raise BuildError(
            f"--backend {backend}: got a graph in bfloat16, which ONNX Runtime does not run on a CPU, expected float16 or "
            "float32; build with --dtype float16 or --dtype float32"
        )
    if backend == "onnxruntime-cuda" and not is_packed:
        raise BuildError(
            f"--backend {backend}: got a graph of standard ops, expected one with enginewright's own ops, which have fast "
            "kernels there; build without --plugins none"
        )
    if backend in ("onnxruntime-cuda", "tensorrt") and is_packed and dtype == "float32":
        raise BuildError(
            f"--backend {backend}: got a graph that computes in float32, expected float16 or bfloat16; build with "
            "--dtype float16 or --dtype bfloat16"
        )


def check_graphs(backend: str, added: str) -> None:
    """Raise BuildError where an engine has graphs next to the decoder's, and `backend` runs the decoder's alone.

    added: names those graphs; empty: there are none.
    """
    if added and backend != "onnxruntime":
        raise BuildError(
            f"--backend {backend}: got an engine with {added}, expected the decoder's graph alone, as only onnxruntime runs "
            "others; choose --backend onnxruntime, or build the engine without what adds them"
        )


def build(root: Path, manifest: Manifest, backend: str, options: BackendOptions | None = None) -> Manifest:
    """Build the engine directory's graphs for `backend` and return the manifest that names the engines.

    Raises:
        TargetError: only the machine that will run the engine can build it.
        BuildError: the build fails for any other reason; the directory is left unchanged.
    """
    options = options or BackendOptions()
    check_backend(backend, options)
    more = ", ".join(name for name in manifest.graphs if name != "decoder")
    check_graphs(backend, more and f"the graphs {more}")
    check_numbers(backend, manifest.dtype, is_packed=any(graph.ops for graph in manifest.graphs.values()))
    built: Manifest = importlib.import_module(BACKENDS[backend]).build(root, manifest, backend, options)
    return built
