"""The devices of the kernels' tests: emulated, and a GPU where there is one."""

from tests.gpu.conftest import device

__all__ = ["device"]
