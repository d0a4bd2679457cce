"""Evaluation of engines: accuracy on problems with one right answer, perplexity, and divergence from a reference."""
