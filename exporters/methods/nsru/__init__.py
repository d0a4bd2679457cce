"""NSRU: trains an adapter that unlearns some answers, in the null space of what is to be kept."""

from enginewright.exporters.methods.nsru.method import METHOD
from enginewright.exporters.methods.nsru.subspace import project, retain_basis
from enginewright.exporters.methods.nsru.unlearning_losses import extraction_strength, objective, token_mean_loss

__all__ = ["METHOD", "extraction_strength", "objective", "project", "retain_basis", "token_mean_loss"]
