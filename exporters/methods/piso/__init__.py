"""PiSO: linear layers in 2, 3, 4 or 8 bits, with exact scales and error correction, calibrated on text."""

from enginewright.exporters.methods.piso.method import METHOD

__all__ = ["METHOD"]
