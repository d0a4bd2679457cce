"""Custom ops: their declarations, their numpy definitions, their kernels, and the libraries that contain the kernels."""
