"""Steering: vectors that a request names, added to chosen layers from the prompt's last token on."""

from enginewright.exporters.methods.steering.method import METHOD

__all__ = ["METHOD"]
