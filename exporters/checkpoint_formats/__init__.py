"""Checkpoints as other servers read them: writes methods' results as safetensors."""
