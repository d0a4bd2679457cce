"""The fixture `device` of the kernels' tests: an emulated device, and a GPU where there is one."""

from tests.support.kernels.fixtures import device

__all__ = ["device"]
