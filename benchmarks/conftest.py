"""The tests' rules for what a machine lacks, and their own caches: markers mean here what they mean there."""

from tests.conftest import own_caches, pytest_collection_modifyitems

__all__ = ["own_caches", "pytest_collection_modifyitems"]
