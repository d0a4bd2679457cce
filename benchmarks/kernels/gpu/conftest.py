"""The devices of the kernels' tests: emulated, and a GPU where there is one."""

from tests.support.kernels.fixtures import device

__all__ = ["device"]
