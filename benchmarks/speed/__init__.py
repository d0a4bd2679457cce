"""Comparisons of whole engines: a method's gain in time or memory, and its cost."""
