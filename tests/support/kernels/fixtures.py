"""The fixture `device`: `emulated` on any machine with a C++ compiler, and `cuda` on one with a GPU and nvcc."""

from __future__ import annotations

from functools import cache

import pytest

from enginewright.plugins.build import OBJECTS, build, build_emulation
from enginewright.plugins.libraries.cuda import CudaLibrary, open_cuda_library
from tests.support.kernels.device import CudaDevice, Device, EmulatedDevice
from tests.support.once import locked


@cache
def open_device(name: str) -> Device:
    if name == "emulated":
        with locked(OBJECTS / "emulation.lock"):  # processes of pytest-xdist
            return EmulatedDevice(CudaLibrary(build_emulation()))
    build(OBJECTS / "cuda", ort=False, cuda=True)
    library = open_cuda_library()
    library.check_device()
    return CudaDevice(library)


@pytest.fixture(
    scope="session",
    params=[pytest.param("emulated", marks=pytest.mark.emulated), pytest.param("cuda", marks=pytest.mark.cuda)],
)
def device(request: pytest.FixtureRequest) -> Device:
    """Each device in turn."""
    return open_device(request.param)
