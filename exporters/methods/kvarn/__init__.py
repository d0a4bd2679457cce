"""KVarN: keys and values in 2, 4 or 8 bits, balanced before rounding."""

from enginewright.exporters.methods.kvarn.method import METHOD, Config

__all__ = ["METHOD", "Config"]
