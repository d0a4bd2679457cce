"""Capture: a model's forward pass as the packed decoder graph, without model code of ours."""
