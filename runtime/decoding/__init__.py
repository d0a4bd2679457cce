"""Decoding: turns the logits of a step into the next tokens of its requests."""
