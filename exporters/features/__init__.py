"""Features of a model's attention that its config asks for and transformers does not have.

No option turns one on: a model is trained with it. `registry.py` reads them from a config.
"""
