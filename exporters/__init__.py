"""Checkpoint and methods to an engine directory with graphs."""
