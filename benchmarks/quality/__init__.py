"""Losses of a model to quantised caches and weights."""
