"""Eviction from the cache: tokens with small scores leave, until each head is at its budget."""

from enginewright.exporters.methods.evict.method import METHOD, Config

__all__ = ["METHOD", "Config"]
