"""Weights: recipes that run when the weights are written, and the forms in which weights are stored."""
