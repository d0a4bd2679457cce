"""Kernels next to what the machine can do: plain memory reads, matrix products, torch."""
