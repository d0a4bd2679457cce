"""CLP: adds heads that guess further tokens, and a classifier that says how many of the guesses to emit."""

from enginewright.exporters.methods.clp.lengths import accept_lengths

__all__ = ["accept_lengths"]
