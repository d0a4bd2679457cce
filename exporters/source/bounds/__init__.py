"""Bounds of what a config may ask for, so that an absurd one ends in an error and not in all of the memory or time."""
