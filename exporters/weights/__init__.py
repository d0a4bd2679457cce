"""Weights as recipes that run when they are written, and the forms in which they are stored."""
