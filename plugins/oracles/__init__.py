"""Numpy definitions of the ops: slow, plain, and the reference of every kernel."""
