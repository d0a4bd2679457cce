"""Fixtures for tests of the whole CUDA library; kernels need nvcc, torch and the checkout, whole engines need more."""

from importlib.util import find_spec

from tests.support.kernels.fixtures import device

__all__ = ["device"]

if any(find_spec(name) is None for name in ("onnxruntime", "onnx_ir", "transformers")):
    collect_ignore = ["test_engine.py", "test_piso.py", "test_trt_engine.py"]
