"""Logits processors, one a module; each has a PROCESSOR."""
