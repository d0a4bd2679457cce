"""Engines next to other runtimes with the same model, in alternating processes."""
