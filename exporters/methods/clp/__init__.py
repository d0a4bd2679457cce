"""CLP: extra heads guess further tokens, and a classifier says how many of the guesses to emit."""

from enginewright.exporters.methods.clp.lengths import accept_lengths

__all__ = ["accept_lengths"]
