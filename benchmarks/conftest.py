"""The skip rules of `tests/`, so that the markers `native`, `cuda` and `slow` mean the same here."""

from tests.conftest import pytest_collection_modifyitems

__all__ = ["pytest_collection_modifyitems"]
