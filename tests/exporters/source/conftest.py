"""The damaged checkpoints of these tests."""

from __future__ import annotations

from tests.support.exporters.checkpoints import model, sharded

__all__ = ["model", "sharded"]
