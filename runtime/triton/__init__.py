"""What Triton Inference Server runs of an engine: the class that a repository's model.py names.

    from enginewright.runtime.triton.model import TritonPythonModel

Everything but `model` works without Triton.
"""
