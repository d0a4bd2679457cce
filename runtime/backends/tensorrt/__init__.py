"""TensorRT and TensorRT-RTX as backends, on NVIDIA GPUs."""
