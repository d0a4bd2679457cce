"""Declarations of the custom ops, one file each; `registry.py` lists them."""
