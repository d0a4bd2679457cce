"""The devices that kernels run on: `emulated` wherever there is a C++ compiler, `cuda` where there is a GPU and nvcc."""

from __future__ import annotations

import shutil
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# the cases of the CPU's tests are these too
sys.path[:0] = [str(HERE), str(HERE.parent / "plugins"), str(HERE.parent / "exporters")]
sys.path.append(str(HERE.parent / "runtime"))  # the fake TensorRT
if any(find_spec(name) is None for name in ("onnxruntime", "onnx_ir", "transformers")):
    collect_ignore = [
        "test_engine.py",
        "test_piso.py",
        "test_trt_engine.py",
    ]  # kernels alone need nvcc, torch and the checkout

from device import CudaDevice, Device, EmulatedDevice  # noqa: E402

from enginewright.plugins.build import OBJECTS, build, build_emulation  # noqa: E402
from enginewright.plugins.libraries.cuda import CudaLibrary, open_cuda_library  # noqa: E402


@cache
def open_device(name: str) -> Device:
    if name == "emulated":
        return EmulatedDevice(CudaLibrary(build_emulation()))
    build(OBJECTS / "cuda", ort=False, cuda=True)
    library = open_cuda_library()
    library.check_device()
    return CudaDevice(library)


@pytest.fixture(scope="session", params=["emulated", pytest.param("cuda", marks=[pytest.mark.gpu])])
def device(request: pytest.FixtureRequest) -> Device:
    """Each device in turn."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    return open_device(request.param)
