"""Depth-Attention: a layer's values are mixed with those of earlier layers, where a checkpoint's config asks for it."""
