"""ONNX Runtime as two backends: on the CPU, and on NVIDIA GPUs."""
