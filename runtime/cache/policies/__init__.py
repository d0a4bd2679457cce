"""The cache policies: one module each, which the door of `policy.py` finds by its `POLICY`.

An engine whose manifest names none keeps every token, and asks nothing here.
"""
