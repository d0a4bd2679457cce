"""Adapters: LoRA adapters that requests choose, each with its own, in one batch."""

from enginewright.exporters.methods.adapters.method import METHOD, Config

__all__ = ["METHOD", "Config"]
