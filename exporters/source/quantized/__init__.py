"""Checkpoints whose matrices are codes: what their formats share, and how their codes become those of parameters."""
