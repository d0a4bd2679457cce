"""Served engines next to the runtime alone."""
