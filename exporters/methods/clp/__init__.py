"""CLP: adds heads that guess further tokens, and a classifier that says how many of the guesses to emit."""

from enginewright.exporters.methods.clp.lengths import accept_lengths
from enginewright.exporters.methods.clp.method import METHOD

__all__ = ["METHOD", "accept_lengths"]
