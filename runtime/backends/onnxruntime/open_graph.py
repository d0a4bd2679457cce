"""Opens a graph in ONNX Runtime: the engine that was built for this machine, or else the graph itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnxruntime as ort  # type: ignore[import-untyped]

from enginewright.plugins.ops.registry import OPS
from enginewright.runtime.artifact.files.bounded_file import read_bounded
from enginewright.runtime.artifact.manifest import BuiltGraph, Graph
from enginewright.runtime.backends.onnxruntime.load_errors import LOAD_ERRORS
from enginewright.runtime.errors import ArtifactError

_MOST = 1 << 31  # bytes of a graph, the most of a serialised message; its weights are in other files


def open_graph(
    root: Path,
    graph: Graph,
    options: ort.SessionOptions,
    providers: list[Any],
    *,
    backend: str,
    compute: str,
    optimized: bool,
) -> ort.InferenceSession:
    """Open the engine built for `backend` and this machine, or else the graph itself.

    compute: the kind of machine, as in BuiltGraph.
    optimized: whether such an engine was optimised offline, so that ONNX Runtime need not optimise it again.

    Raises:
        ArtifactError: ONNX Runtime cannot load it.
    """
    path = weights = root / graph.files[0].path
    for engine in graph.engines:
        if engine.backend != backend:
            continue
        if differs := _difference(engine, compute):
            warnings.warn(
                f"{root / engine.files[0].path}: {differs}; running {graph.files[0].path} instead; "
                f"build the engine again on this machine for a faster start",
                stacklevel=2,
            )
            continue
        path = root / engine.files[0].path
        break
    # The graph is passed as bytes, because an engine's weights lie next to the exported graph, in another folder.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights.parent))
    if path is not weights and optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(
            read_bounded(path, _MOST, ArtifactError, "build the engine again"), options, providers=providers
        )
    except LOAD_ERRORS as e:
        raise ArtifactError(
            f"{path}: onnxruntime {ort.__version__} cannot load it ({e}); build the engine again"
        ) from e


def _difference(engine: BuiltGraph, compute: str) -> str | None:
    """Return in words how this machine differs from the one that `engine` was built for; None where it does not."""
    if engine.version != ort.__version__:
        return f"built for onnxruntime {engine.version}, installed is {ort.__version__}"
    if engine.compute != compute:
        return f"built for {engine.compute}, this machine is {compute}"
    for name, version in engine.plugins.items():
        if name not in OPS or OPS[name].version != version:
            return f"built with {name} version {version}, installed is {OPS[name].version if name in OPS else 'none'}"
    return None
