"""Benchmarks of the quality that a model loses with quantised caches and weights."""
