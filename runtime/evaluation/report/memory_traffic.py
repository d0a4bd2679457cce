"""What a decoded token costs in memory traffic, which bounds the speed of decoding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes read per decoded token when one request runs alone.

    weights: the files of the decoder graph's weights, once. A separate embedding table counts as a whole, although a
    token reads one row of it, and so do experts that the token is not routed to.
    cache: keys and values of the tokens that the token sees, windows counted, averaged over the tokens that were decoded
    or scored; context: how many tokens those saw on average, windows not counted.
    """

    weights: int
    cache: float
    context: float

    @property
    def total(self) -> float:
        """Weights and cache."""
        return self.weights + self.cache


def estimate_traffic(manifest: Manifest, contexts: NDArray[np.int64]) -> Traffic:
    """Return the bytes per token; contexts: how many tokens the step that decides each token sees."""
    graph, *weights = manifest.graphs["decoder"].files
    cache = 0.0
    size = manifest.cache.tile_tokens
    for layer in manifest.cache.layers:
        seen = np.minimum(contexts, layer.window) if layer.window else contexts
        exact = np.zeros_like(seen)
        if layer.exact_bytes:  # the newest tile, with the token itself, and what is in sight of the first one
            newest, first = (contexts - 1) % size + 1, np.maximum(size - (contexts - seen), 0)
            exact = np.minimum(newest + first, seen)
        cache += layer.kv_heads * layer.tile_bytes / size * float((seen - exact).mean())
        cache += layer.kv_heads * layer.exact_bytes / size * float(exact.mean())
    return Traffic(
        weights=sum(file.size for file in weights) or graph.size, cache=cache, context=float(contexts.mean())
    )
