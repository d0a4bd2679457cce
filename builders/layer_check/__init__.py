"""Compares a backend's graph with the exported one, layer by layer."""
