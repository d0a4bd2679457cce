"""Measures how well unlearning forgets invented authors, and how much else it takes away."""
