"""Decoding kinds, one a module; each has a KIND."""
