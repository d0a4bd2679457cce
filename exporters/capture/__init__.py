"""Capture: turns a model's forward pass into the packed decoder graph, without model code of ours."""
