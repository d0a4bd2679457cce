"""The fixture `device`, which runs the kernels' tests on each device in turn."""

from tests.support.kernels.fixtures import device

__all__ = ["device"]
