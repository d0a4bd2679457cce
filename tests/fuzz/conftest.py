"""Checkpoints for the tests of this folder."""

from __future__ import annotations

from tests.support.exporters.fixtures import checkpoint

__all__ = ["checkpoint"]
