"""Numpy definitions of the ops: slow and plain; every kernel is tested against them."""
