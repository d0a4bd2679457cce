"""Inference methods, one file or folder each; `registry.py` finds them by name."""
