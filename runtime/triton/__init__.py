"""Serves an engine in Triton Inference Server, by the class that a model repository's model.py imports.

    from enginewright.runtime.triton.model import TritonPythonModel

Everything but `model` works without Triton.
"""
