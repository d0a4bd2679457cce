"""Builds engines for ONNX Runtime, on the CPU and on NVIDIA GPUs."""
