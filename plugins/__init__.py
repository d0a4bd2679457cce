"""Custom ops: their declaration, their kernels, and the libraries that carry them."""
