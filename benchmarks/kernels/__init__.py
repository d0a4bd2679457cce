"""Benchmarks of kernels against the machine's limits: plain memory reads, matrix products, torch."""
