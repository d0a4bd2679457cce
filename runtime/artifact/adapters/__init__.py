"""Adapters in PEFT's format: their settings, and their factors as an engine's condition takes them."""
