"""Every custom op, declared once, one file an op; `registry.py` lists them."""
