"""The memory traffic of a decoded token, which bounds the speed of decoding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes read for each decoded token when a single request runs; created by `estimate_traffic`.

    weights: bytes of the decoder graph's weight files. A separate embedding table counts as a whole, although a token reads
        one row of it. Experts to which a token is not routed count as well.
    cache: bytes of the keys and values that a token sees, averaged over the tokens that were decoded or scored. Only tokens
        within a layer's window count.
    context: number of tokens that a token sees, averaged in the same way; windows do not count here.
    """

    weights: int
    cache: float
    context: float

    @property
    def total(self) -> float:
        """Bytes of weights and cache together."""
        return self.weights + self.cache


def estimate_traffic(manifest: Manifest, contexts: NDArray[np.int64]) -> Traffic:
    """Return the bytes read per token.

    contexts[n]: for each decoded or scored token, the number of tokens that the step that decides it sees.
    """
    graph, *weights = manifest.graphs["decoder"].files
    cache = 0.0
    size = manifest.cache.tile_tokens
    for layer in manifest.cache.layers:
        seen = np.minimum(contexts, layer.window) if layer.window else contexts
        exact = np.zeros_like(seen)
        if layer.exact_bytes:  # the newest tile, up to the token itself, and the visible part of the first tile
            newest, first = (contexts - 1) % size + 1, np.maximum(size - (contexts - seen), 0)
            exact = np.minimum(newest + first, seen)
        cache += layer.kv_heads * layer.tile_bytes / size * float((seen - exact).mean())
        cache += layer.kv_heads * layer.exact_bytes / size * float(exact.mean())
    return Traffic(
        weights=sum(file.size for file in weights) or graph.size, cache=cache, context=float(contexts.mean())
    )
