"""LoRA: merges adapters into the weights while they are written."""

from enginewright.exporters.methods.lora.method import METHOD, Config

__all__ = ["METHOD", "Config"]
