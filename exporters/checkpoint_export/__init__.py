"""Checkpoint formats: write the results of methods as safetensors that other servers read."""
