"""Compares engines of every model family that transformers knows with transformers' own logits."""
