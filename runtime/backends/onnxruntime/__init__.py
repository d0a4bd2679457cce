"""ONNX Runtime as a backend, on the CPU and on NVIDIA GPUs."""
