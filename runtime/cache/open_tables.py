"""The choice of an engine's tile tables, by its cache policy."""

from __future__ import annotations

from enginewright.runtime.artifact.manifest import Cache
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.policy import RECORDS, open_policy
from enginewright.runtime.cache.policy_tables import PolicyTables
from enginewright.runtime.cache.record_tables import RecordTables
from enginewright.runtime.cache.tile_tables import TileTables


def open_tables(cache: Cache, capacity: Capacity) -> TileTables:
    """Return the tables of an engine: PolicyTables or RecordTables where its cache has a policy, otherwise TileTables."""
    policy = open_policy(cache)
    if policy is None:
        return TileTables(cache, capacity)
    return (RecordTables if RECORDS in policy.needs else PolicyTables)(cache, capacity, policy)
