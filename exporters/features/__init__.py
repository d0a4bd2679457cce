"""Features of a model's attention that its config asks for and transformers does not have.

No option turns one on: a model is trained with it. Each module or folder here that has a FEATURE is one; `registry.py` finds
them.
"""
