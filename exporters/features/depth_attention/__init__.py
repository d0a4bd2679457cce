"""Depth-Attention: mixes a layer's values with those of earlier layers, where a checkpoint's config asks for it."""

from enginewright.exporters.features.depth_attention.feature import FEATURE

__all__ = ["FEATURE"]
