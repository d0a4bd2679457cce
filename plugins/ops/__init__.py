"""Declarations of the custom ops and of their kernels' calls, one file each; `registry.py` finds them."""
