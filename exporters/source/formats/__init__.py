"""Formats of checkpoints, one module each; a module's SOURCE says what it recognises and opens it."""
