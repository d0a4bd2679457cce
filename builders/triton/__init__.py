"""Writes an engine directory as a model of a Triton model repository."""
