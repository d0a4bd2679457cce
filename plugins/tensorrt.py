"""TensorRT as this project names it, and the plugin library for it. Standard library only at import."""

from __future__ import annotations

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Backend, as command lines and manifests call it -> the Python module that builds and runs its engines."""
