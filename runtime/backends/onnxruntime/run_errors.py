"""The exceptions that ONNX Runtime raises when a model that it has loaded cannot run, as errors of the product."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort  # type: ignore[import-untyped]
from onnxruntime.capi import onnxruntime_pybind11_state as state  # type: ignore[import-untyped]

from enginewright.runtime.backends.onnxruntime.load_errors import LOAD_ERRORS
from enginewright.runtime.errors import ArtifactError

RUN_ERRORS: tuple[type[Exception], ...] = (*LOAD_ERRORS, state.EPFail, state.EngineError, RuntimeError, ValueError)
"""RuntimeError and ValueError are what its Python bindings raise on their own account."""


def run_error(root: Path, graph: str, error: Exception) -> ArtifactError:
    """Return the error of a step that ONNX Runtime could not run.

    root: the engine directory.
    graph: path of the graph's file in it.
    error: what ONNX Runtime raised.
    """
    return ArtifactError(
        f"{root / graph}: onnxruntime {ort.__version__} could not run it ({error}); the graph and its manifest disagree, or memory "
        "ran out: build the engine again, or load it with smaller limits"
    )
