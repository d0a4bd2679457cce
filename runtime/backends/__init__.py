"""Backends: run the decoder graph on this machine's processor or GPU; each backend is a folder."""
