"""The tests' rules for what a machine lacks: markers `native`, `cuda` and `slow` mean here what they mean there."""

from tests.conftest import pytest_collection_modifyitems

__all__ = ["pytest_collection_modifyitems"]
