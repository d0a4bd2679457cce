"""Comparisons of engines with other runtimes on the same model, in alternating processes."""
