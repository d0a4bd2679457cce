"""Builds plans for TensorRT and TensorRT-RTX."""
