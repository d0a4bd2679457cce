"""Depth-Attention: mixes a layer's values with those of earlier layers, where a checkpoint's config asks for it."""
