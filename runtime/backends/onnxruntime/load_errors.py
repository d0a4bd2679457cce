"""The exceptions that ONNX Runtime raises when it cannot load a model; they have no base class of their own."""

from __future__ import annotations

from onnxruntime.capi import onnxruntime_pybind11_state as state  # type: ignore[import-untyped]

LOAD_ERRORS: tuple[type[Exception], ...] = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
)
